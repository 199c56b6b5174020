"""bertc bench ARTIFACT: latency and throughput per shape, against its source or another artifact, in one interleaved run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import InputError, Missing
from . import _shared as shared

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..bench import BenchResult
    from ..core import Progress, Shape


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="ARTIFACT")
@click.option("--against", multiple=True, help="SOURCE (as PyTorch, torch.compile, unfused ONNX Runtime) or ARTIFACT; repeatable")
@click.option(
    "--shapes", "texts", multiple=True, help="as in 1x16,8x128 or batch=8,length=128; default: those profiles are tuned for"
)
@click.option("--lengths", type=click.Path(path_type=Path), help="shapes and their weights from requests (see bertc profile)")
@click.option("--padded", is_flag=True, help="the artifact as well, with each call padded to its buckets")
@click.option("--threads", type=int, default=0, help="of every contender; default: the cores this process may use")
@click.option("--rounds", type=int, default=100, show_default=True, help="calls that are timed, per contender and shape")
@click.option("--seed", default=0, show_default=True, help="of the token ids and of the order of the calls")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="write the times as a table")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="draw the medians, as .svg")
@click.option("--require-engine", is_flag=True, help="exit 3 where the engine itself cannot run")
@shared.JSON
def bench(
    path: Path,
    against: Sequence[str],
    texts: Sequence[str],
    lengths: Path | None,
    padded: bool,
    threads: int,
    rounds: int,
    seed: int,
    csv_path: Path | None,
    plot_path: Path | None,
    require_engine: bool,
    as_json: bool,
) -> None:
    """Time ARTIFACT. Contenders run in turns, with as many threads, and their outputs are compared first (exit 1 if they differ).

    An engine that cannot run here gets kernels, FLOPs and bytes by layer from its build log, and no time.
    """
    from ..artifact import manifest as artifact
    from ..bench import interleaved as benching
    from ..bench import timings
    from ..report import figures, plots

    log = shared.progress()
    found = artifact.open_artifact(path)
    shapes = _shapes(found, texts, lengths, log)
    if reason := benching.why_not_runnable(found):
        if require_engine:
            raise Missing(f"--require-engine: the engine of {path} cannot run here: {reason}")
        return _not_run(found, shapes, reason, against, as_json)
    log.say(f"{path} on {', '.join(map(str, shapes))}")
    request = benching.BenchRequest(tuple(against), shapes, rounds, threads, seed, padded)
    result = benching.time_artifact(found, request, log)
    if csv_path is not None:
        csv_path.write_text(timings.to_csv(result), encoding="utf-8")
    if plot_path is not None:
        plot_path.write_text(plots.render_svg(figures.timings_plot(result)), encoding="utf-8")
    _show(result, log)
    if as_json:
        shared.print_json(result.to_json())


def _show(result: BenchResult, log: Progress) -> None:
    """The table, what it holds for, and what each contender is."""
    from ..bench import interleaved as benching
    from ..report import tables

    shared.console().print(tables.timings_table(result))
    log.say(benching.conditions_line(result))
    for name, said in result.descriptions.items():
        differs = result.agreement.get(name)
        log.say(f"  {name}: {said}" + ("" if differs is None else f"; outputs differ by {differs:.1e} at most"))
    for note in result.notes:
        log.note(note)


def _shapes(found: Artifact, texts: Sequence[str], lengths: Path | None, log: Progress) -> tuple[Shape, ...]:
    """Shapes that were asked for, of the traffic, or of the profiles."""
    from ..bench import interleaved as benching

    if texts and lengths:
        raise InputError("--shapes and --lengths both say what to time: give one")
    if lengths is None:
        return benching.parse_shapes(texts, found.dims) if texts else benching.default_shapes(found)
    shapes, note = benching.traffic_shapes(lengths, found)
    log.note(note)
    return shapes


def _not_run(found: Artifact, shapes: Sequence[Shape], reason: str, against: Sequence[str], as_json: bool) -> None:
    """What the build log and the graph tell of an engine that cannot run here."""
    from ..report import tables
    from ..targets import artifact_work

    console = shared.console()
    done = artifact_work(found, shapes)
    for each in done:
        console.print(f"{found.path} at {each.shape}, profile {each.profile}", highlight=False, markup=False)
        console.print(tables.work_table(each))
        if each.nameless:
            kernels = f"{each.nameless} kernels name no node of the graph: what they move is missing from the sums"
            console.print(f"  {kernels}", highlight=False)
        if each.unknown:
            console.print(f"  {each.unknown} products or tensors of unknown size are missing from the sums", highlight=False)
    ignored = "; --against was not looked at" if against else ""
    console.print(f"engine: NOT RUN ({reason}): no time was taken{ignored}", highlight=False, markup=False)
    if as_json:
        shapes_json = [each.to_json() for each in done]
        shared.print_json({"artifact": found.path.name, "executed": False, "reason": reason, "shapes": shapes_json})
