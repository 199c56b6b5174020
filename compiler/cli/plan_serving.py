"""bertc plan-serving ARTIFACT --requests F --rate R --p99 T: simulate a server on real traffic, and write serving.toml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import CheckFailed, Missing, check_writable, write_text
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import FILE, INPUT, SEED, Number, TextType

if TYPE_CHECKING:
    from ..core import Progress
    from ..serve import CostModel

SECTION = "Serve"
EXAMPLES = (
    "bertc plan-serving out/minilm --requests requests.jsonl --rate 9 --p99 80ms",
    "bertc plan-serving out/minilm --requests r.txt --rate 9 --p99 80ms -o s.toml",
)
UNITS = {"ms": 1e-3, "s": 1.0}


class Seconds(TextType):
    """`80ms`, `0.5s`."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        unit = "ms" if text.endswith("ms") else "s" if text.endswith("s") else ""
        try:
            found = float(text.removesuffix(unit)) * UNITS[unit]
        except (KeyError, ValueError):
            self.fail(f"{text!r} is no time; wanted as in 80ms or 0.5s", param, ctx)
        if not 0 < found < 3600:
            self.fail(f"{text!r} is not between 0 and an hour", param, ctx)
        return found


@click.command(name="plan-serving", cls=Command, short_help="Simulate serving on real requests, and choose", examples=EXAMPLES)
@click.argument("artifact", type=INPUT, metavar="ARTIFACT")
@click.option("--requests", "requests", type=INPUT, required=True, metavar="FILE", help="Lengths, or requests as .jsonl.")
@click.option("--rate", type=Number(0, min_open=True), metavar="NUMBER", required=True, help="Requests a second to serve.")
@click.option("--p99", type=Seconds(), required=True, metavar="TIME", help="99 of 100 answers come within it, as in 80ms.")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="NUMBER", help="Processes; default: one for each core.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="NUMBER", help="Threads of each; default: the cores shared out.")
@click.option("--seed", type=SEED, metavar="NUMBER", default=0, show_default=True, help="Of the arrivals.")
@click.option("--plot", "plot_path", type=FILE, metavar="FILE", help="Draw p99 by rate of each policy, as .svg.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the choice as serving.toml.")
@shared.JSON
def plan_serving(
    artifact: Path,
    requests: Path,
    rate: float,
    p99: float,
    workers: int | None,
    threads: int | None,
    seed: int,
    plot_path: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Simulate a server of ARTIFACT on the requests of a file: every policy at fractions of --rate and beyond, on measured times.

    The planner is that of `bertc serve`. Times of batches are measured once and kept beside the artifact. Chosen is the policy
    that serves the highest rate within --p99.
    """
    try:
        from ..serve import planning
    except ImportError as error:
        raise Missing(f"serving needs {error.name}: pip install 'bertc[serve]'") from error
    from ..artifact import open_artifact
    from ..report import figures, plots, tables

    log = progress()
    check_writable(plot_path, "--plot")
    check_writable(output, "--output")
    found = open_artifact(artifact)
    cost = _cost(artifact, workers, threads, log)
    lengths, notes = planning.read_lengths(requests, found)
    for note in notes:
        log.note(note)
    plan = planning.plan(lengths, cost, rate, p99, seed)
    console().print(tables.serving_table(plan))
    print_result(plan.why)
    if plot_path is not None:
        write_text(plot_path, plots.render_svg(figures.serving_plot(plan, artifact.name)), "--plot")
    if output is not None:
        planning.write(plan, artifact, output)
        print_result(f"wrote {output}: bertc serve --config {output}")
    if as_json:
        print_json(plan.to_json() | {"notes": list(notes)})
    if not plan.holds:
        raise CheckFailed(f"no policy serves {rate:g} requests a second within {p99 * 1e3:g} ms here: {plan.advice}")


def _cost(artifact: Path, workers: int | None, threads: int | None, log: Progress) -> CostModel:
    """The times beside the artifact, measured for this many workers and threads where they are not there."""
    import asyncio

    from ..serve import config as file
    from ..serve import http

    models = {"model": file.ModelConfig(str(artifact))}
    return asyncio.run(http.measured(file.ServingConfig(workers=workers or 0, threads=threads or 0, models=models), log))
