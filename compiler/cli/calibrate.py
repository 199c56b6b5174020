"""bertc calibrate SOURCE --data F -o RANGES: the ranges of activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..core import InputError
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import FILE, INPUT, Number, OneOf, Option, Source, Target, methods

SECTION = "Build"
EXAMPLES = (
    "bertc calibrate out/export --data texts.txt -o out/ranges.json",
    "bertc calibrate --merge part1.json part2.json -o out/ranges.json",
)


@click.command(cls=Command, short_help="Measure the ranges of activations over data, for int8", examples=EXAMPLES)
@click.argument("references", metavar="SOURCE | --merge RANGES...", nargs=-1, required=True, type=Source())
@click.option("-o", "--out", required=True, type=FILE, metavar="FILE", help="The file of ranges to write, as ranges.json.")
@shared.FORCE_FILE
@click.option("--data", type=INPUT, metavar="FILE|DIR", help="Texts (.txt, .jsonl), arrays (.npz) or a directory of .wav.")
@click.option("--merge", is_flag=True, help="Merge files of ranges, each from its own part of the data, into one.")
@click.option("--target", type=Target(precision=False), help="Name tensors as in the graph lowered for this target.")
@click.option("--method", cls=Option, type=OneOf("method", methods), default="percentile", show_default=True, help="How to clip.")
@click.option(
    "--percentile",
    type=Number(0, 100, min_open=True),
    metavar="NUMBER",
    default=99.99,
    show_default=True,
    help="Of the magnitudes.",
)
@click.option(
    "--outlier",
    type=Number(min=1, min_open=True),
    metavar="NUMBER",
    default=10.0,
    show_default=True,
    help="List channels so many times above the median.",
)
@click.option("--shard", "part", metavar="INDEX/COUNT", default="1/1", help="Calibrate one part: 1/4 is every fourth sample.")
@click.option(
    "--tensor", "also", metavar="PATTERN", multiple=True, help="Measure tensors of this name too, as in *scores; repeatable."
)
@click.option(
    "--per-channel",
    "by_channel",
    metavar="PATTERN",
    multiple=True,
    help="Ranges per channel for these tensors or modules; repeatable.",
)
@click.option(
    "--checkpoint",
    type=Number(min=0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Time between checkpoints to resume from.",
)
@click.option("--restart", is_flag=True, help="Begin anew; do not resume from a checkpoint.")
@shared.recipe_options(*shared.MODEL_OPTIONS)
@shared.JSON
def calibrate(
    references: Sequence[str], out: Path, force: bool, data: Path | None, merge: bool, as_json: bool, **options: Any
) -> None:
    """Measure the ranges of SOURCE's activations over --data in one pass, for int8. An interrupted run resumes."""
    from ..quant.calibration import command as calibration
    from ..report import tables

    log = progress()
    if merge:
        _refuse_unused(click.get_current_context())
        found = calibration.merge([Path(name) for name in references], out, force=force)
    elif len(references) > 1:
        raise InputError(f"{len(references)} sources ({' '.join(references)}); give one, or --merge for files of ranges")
    elif data is None:
        raise InputError("no data; give samples like what the model will see: --data texts.txt")
    else:
        recipe = shared.recipe_of(references[0], log, {name: options.pop(name) for name in shared.MODEL_OPTIONS})
        restart = options.pop("restart")
        request = calibration.request_from_options(data, **options)
        found = calibration.calibrate(
            recipe.source, request, out, options=recipe.source_options, force=force, restart=restart, progress=log
        )
    console().print(tables.calibration_table(found))
    print_result(f"{out}: {calibration.summary(found)}")
    if as_json:
        print_json(calibration.overview(found))


def _refuse_unused(context: click.Context) -> None:
    """What says how to measure says nothing to a merge, which only adds up what was measured."""
    used = ("references", "out", "force", "merge", "as_json")
    options = [each for each in context.command.params if each.name not in used and each.expose_value]
    given = [each.opts[0] for each in options if context.get_parameter_source(str(each.name)) == ParameterSource.COMMANDLINE]
    if given:
        raise InputError(f"--merge only adds up files of ranges; leave out {', '.join(given)}")
