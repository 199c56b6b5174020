"""An artifact that bertc wrote, as a source: its graph, and its goldens as the truth."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..artifact import GOLDENS, open_artifact
from ..core import ArtifactError, SourceError
from ..graph import with_int32_ids
from .types import Source, SourceOptions

if TYPE_CHECKING:
    from pathlib import Path


def open_export(path: Path, options: SourceOptions) -> Source:
    """An artifact as a source. What its own export decided cannot be asked for again; int32 ids can."""
    source = open_artifact_source(path)
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
        options=SourceOptions(**made["options"]),
        goldens=path / GOLDENS,
    )
