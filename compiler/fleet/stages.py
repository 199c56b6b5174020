"""The stages of a fleet, each a function from finished folders to one more folder. What they do is the pipeline's.

export  source -> a checked float32 graph and goldens (as `bertc export` writes it)
fuse    export -> the fused graph, proven for the lowerings of every target: one for all builds of a model
build   export, fused graph -> an artifact (as `bertc build` writes it)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import goldens, pipeline, targets
from ..artifact import GOLDENS, GRAPH, REPORT, open_artifact_source, write_json
from ..export_check import Proof
from ..fuse import Fused
from ..graph import load, save
from ..metrics import Comparison
from ..progress import Progress
from ..recipe import Recipe
from ..rewrite import Applied, Change, Refusal
from ..source import Source
from ..targets import TargetSpec
from .contents import NOTES

FUSED = "fused.json"


@dataclasses.dataclass(frozen=True)
class Work:
    """One stage to do: the recipe, whose targets and precision are those of the one build, and the folders of stages before."""

    stage: str
    recipe: Recipe
    before: Mapping[str, Path]
    timing_cache: Path | None = None


def run(work: Work, directory: Path, log: Progress) -> None:
    """Do a stage into an empty folder. Raises the BertcError of what failed."""
    {"export": export, "fuse": fuse, "build": build}[work.stage](work, directory, log)


def export(work: Work, directory: Path, log: Progress) -> None:
    """`bertc export`, its graph not run a second time: checking the export did that."""
    pipeline.export(dataclasses.replace(work.recipe, budget={}, verify=False), directory, progress=log)
    checked = json.loads((directory / REPORT).read_text("utf-8"))["export_check"]
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes, "export_check": checked})


def fuse(work: Work, directory: Path, log: Progress) -> None:
    """The fused graph as graph.onnx, with nodes of the domain `bertc`, and what the rules did; no graph where they could not."""
    source, proof = _exported(work.before["export"])
    fused = pipeline.fuse_graph(work.recipe, source, every_lowering(), proof, log)
    if fused is not None:
        save(fused.graph, directory / GRAPH)
    change: dict[str, Any] = {"change": fused.change.to_json(), "notes": list(fused.notes)} if fused else {"change": None}
    write_json(directory / FUSED, change)
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes})


def build(work: Work, directory: Path, log: Progress) -> None:
    """One artifact, verified."""
    (wanted,) = pipeline.plan(work.recipe)
    source, proof = _exported(work.before["export"])
    for before in work.before.values():
        told = json.loads((before / NOTES).read_text("utf-8"))
        log.stages.update(told["stages"])
        log.notes.extend(note for note in told["notes"] if note not in log.notes)
    fused = _fused(work.before["fuse"]) if "fuse" in work.before else None
    ranges = pipeline.choose_profiles(work.recipe, source)
    job = pipeline.Job(work.recipe, source, ranges, proof, fused, work.timing_cache)
    pipeline.make(wanted, job, directory, log)


def _exported(path: Path) -> tuple[Source, Proof]:
    """An export as a source, and its proof as it was measured then."""
    samples, outputs = goldens.load_goldens(path / GOLDENS)
    told = json.loads((path / NOTES).read_text("utf-8"))
    source = open_artifact_source(path)
    return source, Proof(samples, outputs, Comparison(source.task), measured=told["export_check"])


def _fused(path: Path) -> Fused | None:
    told: Any = json.loads((path / FUSED).read_text("utf-8"))
    if told["change"] is None:
        return None
    applied = tuple(Applied(**each) for each in told["change"]["applied"])
    refusals = tuple(Refusal(**each) for each in told["change"]["refusals"])
    return Fused(load(path / GRAPH), Change(applied, refusals), tuple(told["notes"]))


def every_lowering() -> tuple[pipeline.Build, ...]:
    """One build for each different table of lowerings, of all targets and SMs: proven for all of them, one fused graph serves
    every build of a model, and a GPU that joins the fleet later changes nothing for the others."""
    found: list[tuple[pipeline.Build, Mapping[str, Any]]] = []
    for name in targets.names():
        target = targets.get(name)
        for sms in (target.DEFAULT_SMS, *((sm,) for sm in target.SMS)) if target.FUSES else ():
            spec = TargetSpec(name, sms)
            table = targets.lowerings(spec)
            if not any(table == other for _, other in found):
                found.append((pipeline.Build(spec, "fp32"), table))
    return tuple(build for build, _ in found)
