"""The stages of a fleet, each a function from finished folders to one more folder. What they do is the pipeline's.

export     source -> a checked float32 graph and goldens (as `bertc export` writes it)
fuse       export -> the fused graph, proven for the lowerings of every target: one for all builds of a model
calibrate  export, fused graph -> what a part of the data says of the lowered graph; where calibration is split
quantise   export, fused graph, those parts -> the graph with Q/DQ pairs: one for all builds that lower and quantise alike
build      export, fused graph, quantised graph -> an artifact (as `bertc build` writes it)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from .. import pipeline, targets
from .. import precision as precisions
from ..artifact import GOLDENS, GRAPH, REPORT, goldens, read_report
from ..core import ArtifactError, Progress, read_json, what_is_wrong, write_json
from ..data import Layout
from ..fusions import Applied, Change, Fused, Refusal
from ..graph import load_graph, save_graph
from ..recipe import Build, Recipe, plan_builds
from ..source import Source, open_artifact_source
from ..targets import TargetSpec
from ..verification import Comparison, ExportCheck, InputsCheck
from .content_digest import NOTES

if TYPE_CHECKING:
    from ..quant import LowBitGraph

FUSED = "fused.json"
QUANTISED = "quantised.json"
OBSERVED = "observed.safetensors"


class Notes(TypedDict):
    """How long the parts of a stage took, in seconds, and what it said."""

    stages: dict[str, float]
    notes: list[str]


class NotesOfExport(Notes):
    export_check: dict[str, Any] | None


class NotesOfQuantised(Notes):
    measured: Any


class Quantised(TypedDict):
    precision: str
    document: Any


class Changes(TypedDict):
    applied: list[dict[str, Any]]
    refusals: list[dict[str, Any]]


class FusedFile(TypedDict):
    change: Changes | None
    notes: NotRequired[list[str]]


@dataclasses.dataclass(frozen=True)
class StageJob:
    """One stage to do: the recipe, whose targets and precision are those of the one build, and the folders of stages before."""

    stage: str
    recipe: Recipe
    before: Mapping[str, Path]
    timing_cache: Path | None = None
    part: str | None = None


def run(work: StageJob, directory: Path, log: Progress) -> None:
    """Do a stage into an empty folder. Raises the BertcError of what failed."""
    every = {"export": export, "fuse": fuse, "calibrate": calibrate, "quantise": quantise, "build": build}
    every[work.stage](work, directory, log)


def export(work: StageJob, directory: Path, log: Progress) -> None:
    """`bertc export`, its graph not run a second time: checking the export did that."""
    pipeline.export(dataclasses.replace(work.recipe, budget={}, verify=False), directory, progress=log)
    checked = read_report(directory / REPORT)["export_check"]
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes, "export_check": checked})


def fuse(work: StageJob, directory: Path, log: Progress) -> None:
    """The fused graph as graph.onnx, with nodes of the domain `bertc`, and what the rules did; no graph where they could not."""
    source, check = _exported(work.before["export"])
    fused = pipeline.fuse_graph(work.recipe, source, every_lowering(), check, log)
    if fused is not None:
        save_graph(fused.graph, directory / GRAPH)
    change: dict[str, Any] = {"change": fused.change.to_json(), "notes": list(fused.notes)} if fused else {"change": None}
    write_json(directory / FUSED, change)
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes})


def calibrate(work: StageJob, directory: Path, log: Progress) -> None:
    """A part of what quantising observes."""
    from .. import quant
    from ..quant.calibration import observe

    wanted, job = _build(work.recipe), _job(work, log)
    number, _, parts = str(work.part).partition("/")
    with log.stage(f"{wanted.name}: calibrate {work.part}") as advance:
        request = pipeline.quantisation_request(wanted, job)
        seen = quant.observe_part(pipeline.lower_graph(wanted, job), job.source, request, (int(number), int(parts)), advance)
        observe.save(seen, directory / OBSERVED)
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes})


def quantise(work: StageJob, directory: Path, log: Progress) -> None:
    """The low-bit form of the lowered graph, the precision that it is to be typed in, and what the report says of it.

    What was timed, where that decides, stands with the notes: it is no part of what the stage made.
    """
    from ..quant.calibration import observe

    wanted, job = _build(work.recipe), _job(work, log)
    parts = [observe.load(path / OBSERVED) for stage, path in work.before.items() if stage.startswith("calibrate")]
    quantised = pipeline.quantise_graph(wanted, job, pipeline.lower_graph(wanted, job), log, parts)
    save_graph(quantised.graph, directory / GRAPH)
    write_json(directory / QUANTISED, {"precision": quantised.precision, "document": quantised.document})
    write_json(directory / NOTES, {"stages": log.stages, "notes": log.notes, "measured": quantised.measured})


def build(work: StageJob, directory: Path, log: Progress) -> None:
    """One artifact, verified."""
    (wanted,) = plan_builds(work.recipe)
    job = _job(work, log)
    targets.require_takes(job.source.graph, [(wanted.spec, wanted.precision)])
    for before in work.before.values():
        written = _read(before / NOTES, Notes)
        log.stages.update(written["stages"])
        log.notes.extend(note for note in written["notes"] if note not in log.notes)
    quantised = _quantised(work.before["quantise"], wanted, job) if "quantise" in work.before else None
    pipeline.build_artifact(wanted, job, directory, log, quantised)


def _build(recipe: Recipe) -> Build:
    """Not `pipeline.plan_builds`, which needs the compiler: only the last stage has it."""
    return Build(targets.parse_spec(recipe.targets[0]), str(recipe.precision), recipe.budget)


def _job(work: StageJob, log: Progress) -> pipeline.Job:
    source, check = _exported(work.before["export"])
    fused = _fused(work.before["fuse"]) if "fuse" in work.before else None
    ranges = pipeline.choose_profiles(work.recipe, source)
    inputs = InputsCheck.recorded(source.inputs_record)
    rows = pipeline.rows_of_data(work.recipe, source, ranges)
    proven = [_build(work.recipe).spec] if work.stage == "build" else []
    packed = pipeline.pack_graph(source, fused, check, log, proven, work.recipe.plugins) if work.recipe.packed else None
    known: dict[str, Any] = {"timing_cache": work.timing_cache, "inputs": inputs, "rows": rows}
    return pipeline.Job(work.recipe, source, ranges, check, fused, packed, **known)


def _quantised(path: Path, wanted: Build, job: pipeline.Job) -> LowBitGraph:
    """What `quantise` wrote; where it quantised, the held-out rows are read again and the float32 graph is run on them."""
    from .. import quant

    written, measured = _read(path / QUANTISED, Quantised), _read(path / NOTES, NotesOfQuantised)["measured"]
    precision, document = written["precision"], written["document"]
    precisions.get(precision)  # a name that becomes a module: one that there is
    judged = precision in precisions.QUANTISED
    truth = (
        quant.held_out_truth(pipeline.lower_graph(wanted, job), job.source, pipeline.quantisation_request(wanted, job))
        if judged
        else None
    )
    return quant.LowBitGraph(load_graph(path / GRAPH), precision, document, truth, measured)


def _exported(path: Path) -> tuple[Source, ExportCheck]:
    """An export as a source, and its check as it was measured then."""
    samples, outputs = goldens.load_goldens(path / GOLDENS)
    source = open_artifact_source(path)
    written = _read(path / NOTES, NotesOfExport)
    with _reading(path / NOTES):
        layout = Layout.of(source.graph.inputs, source.graph.outputs)
        return source, ExportCheck(samples, outputs, Comparison(source.task, layout=layout), measured=written["export_check"])


def _fused(path: Path) -> Fused | None:
    written = _read(path / FUSED, FusedFile)
    if written["change"] is None:
        return None
    with _reading(path / FUSED):
        applied = tuple(Applied(**each) for each in written["change"]["applied"])
        refusals = tuple(Refusal(**each) for each in written["change"]["refusals"])
        return Fused(load_graph(path / GRAPH), Change(applied, refusals), tuple(written["notes"]))


def _read(file: Path, kind: Any) -> Any:
    advice = f"remove the folder {file.parent} and build again"
    return read_json(file, kind, advice=advice, error=ArtifactError)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """A file that a stage wrote, in a store that may be another's: what it cannot say is damage, and no bug."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{file} is damaged: {what_is_wrong(error)}; remove the folder {file.parent} and build again"
        ) from error


def every_lowering() -> tuple[Build, ...]:
    """One build for each different table of lowerings, of all targets and SMs, quantised or not: proven for all of them, one
    fused graph serves every build of a model, and a GPU that joins the fleet later changes nothing for the others."""
    found: list[tuple[Build, Mapping[str, Any]]] = []
    for name in targets.names():
        target = targets.get(name)
        for sms in (target.DEFAULT_SMS, *((sm,) for sm in target.SMS)) if target.FUSES else ():
            for build in (Build(TargetSpec(name, sms), mode) for mode in ("fp32", "int8-static")):
                table = targets.lowerings(build.spec, quantised=build.quantised)
                if not any(table == other for _, other in found):
                    found.append((build, table))
    return tuple(build for build, _ in found)
