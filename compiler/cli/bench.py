"""bertc bench ARTIFACT: latency and throughput per shape, against its source or another artifact, in one interleaved run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, Missing, check_writable, counted, write_text
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import FILE, INPUT, SEED, Number, Source

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..bench import BenchResult
    from ..core import Progress, Shape


SECTION = "Check"
EXAMPLES = (
    "bertc bench out/minilm --against minilm --shapes 1x16,8x128",
    "bertc bench out/minilm --lengths requests.jsonl --rounds 20 --csv times.csv",
)


@click.command(cls=Command, short_help="Time an artifact against its source or others", examples=EXAMPLES)
@click.argument("path", type=INPUT, metavar="ARTIFACT")
@click.option(
    "--against",
    multiple=True,
    type=Source(),
    metavar="SOURCE|ARTIFACT",
    help="A source (as PyTorch, torch.compile, unfused ONNX Runtime) or an artifact; repeatable.",
)
@shared.recipe_options(*shared.GIVEN_OPTIONS)
@click.option(
    "--shapes",
    "texts",
    multiple=True,
    metavar="SHAPE,...",
    help="As in 1x16,8x128 or batch=8,length=128; default: those that the profiles are tuned for.",
)
@click.option("--lengths", type=INPUT, metavar="FILE", help="Take shapes and their weights from requests (see bertc profile).")
@click.option(
    "--fill",
    type=Number(0, 1, min_open=True),
    metavar="FRACTION",
    help="Share of positions with a token, lengths log-normal; default: 1.",
)
@click.option("--padded", is_flag=True, help="Time the artifact also with each call padded to its buckets.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Of every contender; default: OMP_NUM_THREADS, or else all cores of this process.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    default=100,
    show_default=True,
    help="Timed calls per contender and shape.",
)
@click.option(
    "--seed",
    type=SEED,
    metavar="NUMBER",
    default=0,
    show_default=True,
    help="Of the token ids and the order of calls.",
)
@click.option("--csv", "csv_path", type=FILE, metavar="FILE", help="Write the times as a table.")
@click.option("--plot", "plot_path", type=FILE, metavar="FILE", help="Draw the medians, as .svg.")
@click.option("--serving", is_flag=True, help="Also time batches in workers, as bertc serve runs them: ARTIFACT.cost.json.")
@click.option("--require-engine", is_flag=True, help="Exit 3 where the engine itself cannot run.")
@shared.JSON
def bench(
    path: Path,
    against: Sequence[str],
    texts: Sequence[str],
    lengths: Path | None,
    fill: float | None,
    padded: bool,
    threads: int | None,
    rounds: int,
    seed: int,
    csv_path: Path | None,
    plot_path: Path | None,
    serving: bool,
    require_engine: bool,
    as_json: bool,
    **allowed: Any,
) -> None:
    """Time ARTIFACT. Contenders run in turns with equal threads; their outputs are compared first (exit 1 if they differ).

    Of an engine that cannot run here: kernels, FLOPs and bytes by layer from its build log, and no times.
    """
    from ..artifact import manifest as artifact
    from ..bench import interleaved as benching
    from ..bench import timings
    from ..recipe import given_source
    from ..report import figures, plots

    log = progress()
    found = artifact.open_artifact(path)
    check_writable(csv_path, "--csv")
    check_writable(plot_path, "--plot")
    shapes = _shapes(found, texts, lengths, log)
    if reason := benching.why_not_runnable(found):
        if require_engine:
            raise Missing(f"--require-engine: the engine of {path} cannot run here: {reason}")
        given_up = {"--against": against, "--padded": padded, "--csv": csv_path, "--plot": plot_path, "--serving": serving}
        return _show_work(found, shapes, reason, [name for name, value in given_up.items() if value], as_json)
    given = tuple(given_source(each, **allowed) for each in against)
    log.say(f"{path} on {', '.join(map(str, shapes))}")
    request = benching.BenchRequest(given, shapes, rounds, threads or 0, seed, padded, fill)
    result = benching.time_artifact(found, request, log)
    if csv_path is not None:
        write_text(csv_path, timings.to_csv(result), "--csv")
    if plot_path is not None:
        write_text(plot_path, plots.render_svg(figures.timings_plot(result)), "--plot")
    _show_result(result, log)
    if serving:
        _measure_serving(path, threads, log)
    if as_json:
        print_json(result.to_json())


def _measure_serving(path: Path, threads: int | None, log: Progress) -> None:
    """The times by batch and length that `bertc serve` and `plan-serving` go by, measured anew and kept beside the artifact."""
    import asyncio

    try:
        from .. import serve as room
        from ..serve import config as file
    except ImportError as error:
        raise Missing(f"--serving needs {error.name}: pip install 'bertc[serve]'") from error
    config = file.ServingConfig(threads=threads or 0, models={"model": file.ModelConfig(str(path))})
    cost = asyncio.run(room.http.measured(config, log, anew=True))
    print_result(f"times of batches for serving, {cost.workers} workers of {cost.threads} threads: {room.cost.cost_path(path)}")


def _show_result(result: BenchResult, log: Progress) -> None:
    """The table, what it holds for, and what each contender is."""
    from ..bench import interleaved as benching
    from ..report import tables

    console().print(tables.timings_table(result))
    print_result(benching.conditions_line(result))
    for name, said in result.descriptions.items():
        differs = result.agreement.get(name)
        print_result(f"  {name}: {said}" + ("" if differs is None else f"; outputs differ by {differs:.1e} at most"))
    for note in result.notes:
        log.note(note)


def _shapes(found: Artifact, texts: Sequence[str], lengths: Path | None, log: Progress) -> tuple[Shape, ...]:
    """The shapes of --shapes, of --lengths, or of the profiles."""
    from ..bench import interleaved as benching

    if texts and lengths:
        raise InputError("--shapes and --lengths both say what to time; give one")
    if lengths is None:
        return benching.parse_shapes(texts, found.dims) if texts else benching.default_shapes(found)
    shapes, note = benching.traffic_shapes(lengths, found)
    log.note(note)
    return shapes


def _show_work(found: Artifact, shapes: Sequence[Shape], reason: str, unused: Sequence[str], as_json: bool) -> None:
    """What the build log and the graph tell of an engine that cannot run here."""
    from ..report import tables
    from ..targets import artifact_work

    done = artifact_work(found, shapes)
    for each in done:
        print_result(f"{found.path} at {each.shape}, profile {each.profile}")
        console().print(tables.work_table(each))
        if each.nameless:
            name = "kernel names" if each.nameless == 1 else "kernels name"
            print_result(f"  {each.nameless} {name} no node of the graph: what is moved there is missing from the sums")
        if each.unknown:
            print_result(
                f"  missing from the sums: {counted(each.unknown, 'product or tensor', 'products or tensors')} of unknown size"
            )
    ignored = f"; not used: {', '.join(unused)}" if unused else ""
    print_result(f"engine: NOT RUN ({reason}): nothing was timed{ignored}")
    if as_json:
        shapes_json = [each.to_json() for each in done]
        print_json({"artifact": found.path.name, "executed": False, "reason": reason, "shapes": shapes_json})
