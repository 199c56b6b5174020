"""bertc verify ARTIFACT: against its source or its goldens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ..core import CheckFailed, InputError
from . import _shared as shared


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), metavar="ARTIFACT")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="texts (.txt, .jsonl, .csv, .tsv), with labels or without, arrays (.npz) or a directory of .wav",
)
@click.option("--against", help="compare with this source instead of the one it was built from")
@click.option("--require-engine", is_flag=True, help="exit 3 where the engine itself cannot run")
@click.option("--budget", multiple=True, help="a limit, as in cosine=0.9999; repeatable")
@click.option("--max-drop", type=float, help="how much worse the task's metric may be: exit 1 unless the data shows it")
@click.option("--layers", is_flag=True, help="instead: drift after every layer, against the source's graph")
@click.option("--plot", type=click.Path(path_type=Path), help="with --layers: draw it to this .svg file")
@click.option("--bisect", is_flag=True, help="instead: the nodes that, put back to float32, restore the budget")
@shared.JSON
def verify(
    artifact: Path,
    data: Path | None,
    against: str | None,
    require_engine: bool,
    budget: Sequence[str],
    max_drop: float | None,
    layers: bool,
    plot: Path | None,
    bisect: bool,
    as_json: bool,
) -> None:
    """Compare ARTIFACT with its source: on its goldens, or on --data. Exit 1 when it is over its budget, or undecided.

    --layers and --bisect say where it drifts and why, by ONNX node, PyTorch module and source line. --layers exits 1 when a
    value is not finite, --bisect when the artifact is over its budget.

    With a `label` in each row of --data the task's metric is told for both, with a 95 % interval for the drop.
    """
    if layers or bisect or plot is not None:
        _check_modes(layers, bisect, plot, require_engine, max_drop, budget)
        limits = shared.limits_of(budget) if budget else None
        _layers(artifact, data, against, plot, as_json) if layers else _bisect(artifact, data, against, limits, as_json)
        return
    limits = shared.limits_of(budget) if budget else None
    limits = limits if max_drop is None else (limits or {}) | {"max_drop": max_drop}
    _compare(artifact, data, against, require_engine, limits, as_json)


def _compare(
    artifact: Path, data: Path | None, against: str | None, require_engine: bool, limits: dict[str, float] | None, as_json: bool
) -> None:
    from ..report import tables
    from ..verification import verify as run

    log = shared.progress()
    verdicts = run(artifact, data_path=data, against=against, require_engine=require_engine, budget=limits, progress=log)
    console = shared.console()
    console.print(f"{artifact} on {verdicts[0].data}", highlight=False, markup=False)
    console.print(tables.verdicts_table(verdicts))
    if (metrics := tables.metrics_table(verdicts)) is not None:
        console.print(metrics)
    for verdict in verdicts:
        console.print(f"{verdict.path}: {verdict.summary()}", highlight=False, markup=False)
        console.print(f"  {verdict.budget.summary()}", highlight=False, markup=False)
        for note in verdict.notes:
            console.print(f"  note {note}", highlight=False, markup=False)
    if as_json:
        shared.print_json({"artifacts": [verdict.to_json() for verdict in verdicts], "passed": all(v.passed for v in verdicts)})
    failed = [v for v in verdicts if not v.passed]
    if failed:
        reasons = "; ".join(f"{v.path} is {v.shortfall()}: {v.reasons()}" for v in failed)
        click.echo(f"error: {reasons}", err=True)
        raise click.exceptions.Exit(CheckFailed.exit_code)  # not CheckFailed: the JSON document is printed already


def _check_modes(
    layers: bool, bisect: bool, plot: Path | None, require_engine: bool, max_drop: float | None, budget: Sequence[str]
) -> None:
    if layers and bisect:
        raise InputError("--layers and --bisect are two questions: ask one at a time")
    if plot is not None and not layers:
        raise InputError("--plot draws what --layers measures; give both")
    mode = "--layers" if layers else "--bisect"
    if require_engine or max_drop is not None:
        raise InputError(f"{mode} looks into the graph: --require-engine and --max-drop are about the artifact as a whole")
    if layers and budget:
        raise InputError("--layers measures and judges nothing: --budget goes with --bisect")


def _each(artifact: Path) -> Sequence[Path]:
    from ..artifact import find_artifacts

    return find_artifacts(artifact)


def _layers(artifact: Path, data: Path | None, against: str | None, plot: Path | None, as_json: bool) -> None:
    from ..report import figures, plots, tables
    from ..verification.diagnose import run_diagnosis as explaining

    paths, log, console = _each(artifact), shared.progress(), shared.console()
    if plot is not None and len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise InputError(f"--plot draws one artifact; {artifact} holds {len(paths)}: name one of {names}")
    found = {path: explaining.measure_artifact_drift(path, data_path=data, against=against, progress=log) for path in paths}
    for path, drift in found.items():
        console.print(tables.drift_table(drift))
        console.print(f"{path}: {drift.summary()}", highlight=False, markup=False)
        for note in drift.notes:
            console.print(f"  note {note}", highlight=False, markup=False)
        if plot is not None:
            plot.write_text(plots.render_svg(figures.drift_plot(drift)), encoding="utf-8")
    if as_json:
        shared.print_json({"artifacts": [{"path": str(path), **drift.to_json()} for path, drift in found.items()]})
    _exit([f"{path}: {drift.first}" for path, drift in found.items() if drift.first])


def _bisect(artifact: Path, data: Path | None, against: str | None, budget: dict[str, float] | None, as_json: bool) -> None:
    from ..report import tables
    from ..verification.diagnose import run_diagnosis as explaining

    paths, log, console = _each(artifact), shared.progress(), shared.console()
    made = [explaining.bisect_artifact(path, data_path=data, against=against, budget=budget, progress=log) for path in paths]
    for found in made:
        if found.nodes:
            console.print(tables.bisection_table(found))
        console.print(f"{found.path}: {found.summary()}", highlight=False, markup=False)
        for note in found.notes:
            console.print(f"  note {note}", highlight=False, markup=False)
    if as_json:
        shared.print_json({"artifacts": [found.to_json() for found in made]})
    _exit([f"{f.path} is over its budget: {'; '.join(map(str, f.violations))}" for f in made if f.violations])


def _exit(failed: Sequence[str]) -> None:
    """As verify exits: not by CheckFailed, for the JSON document is printed already."""
    if failed:
        click.echo(f"error: {'; '.join(failed)}", err=True)
        raise click.exceptions.Exit(CheckFailed.exit_code)
