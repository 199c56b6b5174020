"""bertc verify ARTIFACT: against its source or its goldens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, check_writable, write_text
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import FILE, INPUT, Number, Source

if TYPE_CHECKING:
    from ..source import GivenSource

SECTION = "Check"
EXAMPLES = (
    "bertc verify out/minilm --data texts.jsonl --against minilm --max-drop 0.005",
    "bertc verify out/engine --layers --against out/export --plot drift.svg",
)


@click.command(cls=Command, short_help="Compare an artifact with its source", examples=EXAMPLES)
@click.argument("artifact", type=INPUT, metavar="ARTIFACT")
@click.option(
    "--data",
    type=INPUT,
    metavar="FILE|DIR",
    help="Texts (.txt, .jsonl, .csv, .tsv), with or without labels, arrays (.npz) or a directory of .wav.",
)
@click.option(
    "--against", type=Source(), metavar="SOURCE", help="The source that it was built from, or another build of that; for --data."
)
@click.option(
    "--teacher",
    type=Source(),
    metavar="TEACHER",
    help="In place of --against: what the student learned from, by --max-drop alone.",
)
@shared.recipe_options(*shared.GIVEN_OPTIONS)
@click.option(
    "--allow-changed-source", is_flag=True, help="Compare though --against is not what it was built from (its sha256 differs)."
)
@click.option("--require-engine", is_flag=True, help="Exit 3 where the engine itself cannot run.")
@click.option("--budget", multiple=True, metavar="NAME=NUMBER", help="A limit, as in cosine=0.9999; repeatable.")
@click.option(
    "--max-drop", type=Number(0, 2), metavar="NUMBER", help="Exit 1 unless the data shows that the metric drops by at most this."
)
@click.option("--layers", is_flag=True, help="Instead: drift after every layer, from the source's graph or in its own float32.")
@click.option("--plot", type=FILE, metavar="FILE", help="With --layers: draw the drift, as .svg.")
@click.option("--bisect", is_flag=True, help="Instead: the nodes that restore the budget when put back to float32.")
@shared.JSON
def verify(
    artifact: Path,
    data: Path | None,
    against: str | None,
    teacher: str | None,
    allow_changed_source: bool,
    require_engine: bool,
    budget: Sequence[str],
    max_drop: float | None,
    layers: bool,
    plot: Path | None,
    bisect: bool,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Compare ARTIFACT with its source, on its goldens or on --data. Exit 1 when it is over its budget, or undecided.

    The goldens in it are the source's outputs. On --data the source itself answers: name it with --against. Nothing that the
    artifact names is opened or run.

    --layers and --bisect find where it drifts and why, by ONNX node, PyTorch module and source line. --layers exits 1 when a
    value is not finite, --bisect when the artifact is over its budget.

    --teacher judges the artifact of a student by what is left of its teacher: its metric where --data has labels, else the cosine
    of vectors or the share of decisions.

    With a `label` in each row of --data: the task's metric of both, and a 95 % interval of the drop.
    """
    from ..recipe import given_source

    if teacher is not None and (against is not None or allow_changed_source or layers or bisect or plot is not None):
        raise InputError(
            "--teacher stands in place of --against, and goes with --data, --max-drop and --budget; leave the others out"
        )
    against = teacher or against
    if against is None and (allow_changed_source or any(allowed.values())):
        raise InputError("--revision, --allow-pickle, --trust-remote-code and --allow-changed-source go with --against SOURCE")
    given = given_source(against, changed=allow_changed_source, teacher=bool(teacher), **allowed) if against is not None else None
    if layers or bisect or plot is not None:
        _check_options(layers, bisect, plot, require_engine, max_drop, budget)
        limits = shared.limits_of(budget) if budget else None
        _layers(artifact, data, given, plot, as_json) if layers else _bisect(artifact, data, given, limits, as_json)
        return
    limits = shared.limits_of([*budget, *([] if max_drop is None else [f"max_drop={max_drop}"])]) or None
    _compare(artifact, data, given, require_engine, limits, as_json)


def _compare(
    artifact: Path,
    data: Path | None,
    against: GivenSource | None,
    require_engine: bool,
    limits: dict[str, float] | None,
    as_json: bool,
) -> None:
    from ..report import tables
    from ..verification import verify as run

    log = progress()
    verdicts = run(artifact, data_path=data, against=against, require_engine=require_engine, budget=limits, progress=log)
    print_result(f"{artifact} on {verdicts[0].data}")
    console().print(tables.verdicts_table(verdicts))
    if (metrics := tables.metrics_table(verdicts)) is not None:
        console().print(metrics)
    for verdict in verdicts:
        print_result(f"{verdict.path}: {verdict.summary()}")
        log.say(f"  {verdict.budget.summary()}")
        for note in verdict.notes:
            log.say(f"  note {note}")
    if as_json:
        print_json({"artifacts": [verdict.to_json() for verdict in verdicts], "passed": all(v.passed for v in verdicts)})
    shared.fail_check([f"{v.path} is {v.shortfall()}: {v.reasons()}" for v in verdicts if not v.passed])


def _check_options(
    layers: bool, bisect: bool, plot: Path | None, require_engine: bool, max_drop: float | None, budget: Sequence[str]
) -> None:
    if layers and bisect:
        raise InputError("--layers and --bisect answer two questions; give one of them")
    if plot is not None and not layers:
        raise InputError("--plot needs --layers")
    mode = "--layers" if layers else "--bisect"
    if require_engine or max_drop is not None:
        raise InputError(f"{mode} looks into the graph; --require-engine and --max-drop judge the whole artifact: leave them out")
    if layers and budget:
        raise InputError("--layers has no budget; --budget goes with --bisect")


def _layers(artifact: Path, data: Path | None, against: GivenSource | None, plot: Path | None, as_json: bool) -> None:
    from ..artifact import find_artifacts
    from ..report import figures, plots, tables
    from ..verification.diagnose import run_diagnosis as explaining

    paths, log = find_artifacts(artifact), progress()
    if plot is not None and len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise InputError(f"--plot draws one artifact; {artifact} holds {len(paths)}: name one of {names}")
    check_writable(plot, "--plot")
    found = {path: explaining.measure_artifact_drift(path, data_path=data, against=against, progress=log) for path in paths}
    for path, drift in found.items():
        console().print(tables.drift_table(drift))
        print_result(f"{path}: {drift.summary()}")
        for note in drift.notes:
            log.say(f"  note {note}")
        if plot is not None:
            write_text(plot, plots.render_svg(figures.drift_plot(drift)), "--plot")
    if as_json:
        print_json({"artifacts": [{"path": str(path), **drift.to_json()} for path, drift in found.items()]})
    shared.fail_check([f"{path}: {drift.first}" for path, drift in found.items() if drift.first])


def _bisect(
    artifact: Path, data: Path | None, against: GivenSource | None, budget: dict[str, float] | None, as_json: bool
) -> None:
    from ..artifact import find_artifacts
    from ..report import tables
    from ..verification.diagnose import run_diagnosis as explaining

    paths, log = find_artifacts(artifact), progress()
    made = [explaining.bisect_artifact(path, data_path=data, against=against, budget=budget, progress=log) for path in paths]
    for found in made:
        if found.nodes:
            console().print(tables.bisection_table(found))
        print_result(f"{found.path}: {found.summary()}")
        for note in found.notes:
            log.say(f"  note {note}")
    if as_json:
        print_json({"artifacts": [found.to_json() for found in made]})
    shared.fail_check([f"{f.path} is over its budget: {'; '.join(map(str, f.violations))}" for f in made if f.violations])
