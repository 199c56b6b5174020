"""bertc verify ARTIFACT: against its source or its goldens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ..errors import CheckFailed
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
@shared.JSON
def verify(
    artifact: Path,
    data: Path | None,
    against: str | None,
    require_engine: bool,
    budget: Sequence[str],
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Compare ARTIFACT with its source: on its goldens, or on --data. Exit 1 when it is over its budget, or undecided.

    With a `label` in each row of --data the task's metric is told for both, with a 95 % interval for the drop.
    """
    from .. import report
    from ..verification import verify as run

    log = shared.progress()
    limits = shared.limits_of(budget) if budget else None
    limits = limits if max_drop is None else (limits or {}) | {"max_drop": max_drop}
    verdicts = run(artifact, data_path=data, against=against, require_engine=require_engine, budget=limits, progress=log)
    console = shared.console()
    console.print(f"{artifact} on {verdicts[0].data}", highlight=False, markup=False)
    console.print(report.verdicts_table(verdicts))
    if (metrics := report.metrics_table(verdicts)) is not None:
        console.print(metrics)
    for verdict in verdicts:
        console.print(f"{verdict.path}: {verdict.summary()}", highlight=False, markup=False)
        for note in verdict.notes:
            console.print(f"  note {note}", highlight=False, markup=False)
    if as_json:
        shared.print_json({"artifacts": [verdict.to_json() for verdict in verdicts], "passed": all(v.passed for v in verdicts)})
    failed = [v for v in verdicts if not v.passed]
    if failed:
        reasons = "; ".join(f"{v.path} is {v.shortfall()}: {v.reasons()}" for v in failed)
        click.echo(f"error: {reasons}", err=True)
        raise click.exceptions.Exit(CheckFailed.exit_code)  # not CheckFailed: the JSON document is printed already
