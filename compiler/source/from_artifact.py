"""An artifact that bertc wrote, as a source: its graph, and its goldens as the truth.

What its manifest says of its own source is a record. Nothing that it names is opened, imported or allowed: an artifact may be
anybody's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..artifact import MANIFEST, open_artifact
from ..core import ArtifactError, DataError, SourceError
from ..graph import with_int32_ids
from .types import IDS, TASKS, GivenSource, Source, SourceOptions

if TYPE_CHECKING:
    from pathlib import Path

    from ..artifact import Artifact


def open_export(path: Path, options: SourceOptions) -> Source:
    """An artifact as a source. What its own export decided cannot be asked for again; int32 ids can, and the task of a model
    that had none: it says what is compared, and changes nothing in the graph."""
    source = open_artifact_source(path)
    if source.task == "custom" and options.task is not None:
        source = dataclasses.replace(source, task=options.task)
    fixed: dict[str, tuple[Any, Any]] = {"task": (options.task, source.task), "revision": (options.revision, source.revision)}
    fixed["opset"] = (options.opset if options.opset != SourceOptions.opset else None, source.graph.opset)
    for name, (requested, found) in fixed.items():
        if requested is not None and requested != found:
            raise SourceError(f"{path} was exported with {name} {found}, not {requested}; export {source.reference} again")
    if options.ids == "int32" and source.options.ids == "int64":
        return dataclasses.replace(
            source, graph=with_int32_ids(source.graph), options=dataclasses.replace(source.options, ids="int32")
        )
    return source


def open_artifact_source(path: Path) -> Source:
    """An export as a source: its graph, and its goldens as the truth. ArtifactError for one whose graph is typed already."""
    found = open_artifact(path)
    if found.precision != "fp32":
        raise ArtifactError(f"{path} is already {found.precision}; build from its export or its source")
    made = found.manifest["source"]
    lowered = (f"{path} was fused and lowered for {found.target}: rules may match less than in an export (bertc export)",)
    return Source(
        reference=made["reference"],
        kind=made["kind"],
        sha256=made["sha256"],
        task=made["task"],
        graph=found.graph(),
        dims=found.dims,
        run=None,
        assets=found.assets,
        revision=made["revision"],
        notes=(*made["notes"], f"built from an export of {made['reference']}; its goldens are the reference")
        + (lowered if found.manifest.get("passes") else ()),
        versions=found.manifest.get("tools", {}),
        options=recorded_options(found),
        goldens=found.goldens,
        inputs_record=found.inputs_check,
    )


def recorded_options(found: Artifact) -> SourceOptions:
    """What the manifest says its source was opened with, for the record. ArtifactError for what bertc cannot have written."""
    recorded = found.manifest["source"]["options"]
    fields = {field.name: getattr(SourceOptions, field.name) for field in dataclasses.fields(SourceOptions)}
    for name, value in recorded.items():
        kinds = (str, type(None)) if fields.get(name) is None else (type(fields[name]),)
        if name not in fields or type(value) not in kinds or (name == "ids" and value not in IDS):
            raise ArtifactError(f"{found.path / MANIFEST} is damaged: source.options.{name} is {value!r}; copy or build it again")
    return SourceOptions(**recorded)


def options_for(found: Artifact, given: GivenSource) -> SourceOptions:
    """How to open a source that a user gave to compare an artifact with: the artifact's task, integer type and opset.

    Whether pickles are read and remote code runs, and which revision is meant, is the user's word alone.
    """
    recorded = recorded_options(found)
    task = found.task if found.task in TASKS else None
    return SourceOptions(
        task, given.revision, given.allow_pickle, given.trust_remote_code, recorded.ids, recorded.opset, given.adapter
    )


def source_wanted(found: Artifact, what: str) -> DataError:
    """The error where the source is needed and nobody gave it."""
    made = found.manifest["source"]
    return DataError(
        f"{what} needs the source of {found.path}: give --against SOURCE. The manifest says that it was built from "
        f"{made['reference']!r}; a manifest may be anybody's, so bertc opens nothing that it names"
    )


def check_same_source(found: Artifact, given: GivenSource, sha256: str) -> None:
    """Raises DataError where the source that was given is not the one that the artifact was built from, by its hash."""
    made = found.manifest["source"]
    if sha256 != made["sha256"] and not given.changed:
        raise DataError(
            f"--against {given} is not what {found.path} was built from: its sha256 is {sha256[:12]}..., the manifest has "
            f"{made['sha256'][:12]}... ({made['reference']!r}). Build again, or compare with it anyway: --allow-changed-source"
        )
