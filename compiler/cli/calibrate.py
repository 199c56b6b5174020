"""bertc calibrate SOURCE --data F -o RANGES: the ranges of activations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..core import InputError
from . import _shared as shared


@click.command()
@click.argument("references", metavar="SOURCE | --merge RANGES...", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the file of ranges to write, as ranges.json")
@click.option("--force", is_flag=True, help="replace a file that is there")
@click.option("--data", type=click.Path(path_type=Path), help="texts (.txt, .jsonl), arrays (.npz) or a directory of .wav")
@click.option("--merge", is_flag=True, help="make one of several files of ranges, each from its own part of the data")
@click.option("--target", help="name tensors as in the graph lowered for this target, not as in the source's own graph")
@click.option("--method", default="percentile", show_default=True, help="minmax, percentile, entropy or mse; all are listed")
@click.option("--percentile", default=99.99, show_default=True, help="of the magnitudes, for that method")
@click.option("--outlier", default=10.0, show_default=True, help="list channels this many times above the median channel")
@click.option(
    "--shard", "part", default="1/1", help="calibrate one part of the data: 1/4 is every fourth sample; --merge the files"
)
@click.option("--tensor", "also", multiple=True, help="measure tensors of this name too (* matches anything); repeatable")
@click.option(
    "--per-channel", "by_channel", multiple=True, help="ranges per channel for tensors or modules so called; repeatable"
)
@click.option("--checkpoint", default=30.0, show_default=True, help="seconds between checkpoints, from which a run goes on")
@click.option("--restart", is_flag=True, help="begin anew in place of going on from the checkpoint of an interrupted run")
@shared.recipe_options(*shared.MODEL_OPTIONS)
@shared.JSON
def calibrate(
    references: Sequence[str], out: Path, force: bool, data: Path | None, merge: bool, as_json: bool, **options: Any
) -> None:
    """Measure the ranges of SOURCE's activations over --data in one pass, for INT8. An interrupted run goes on where it was."""
    from ..quant.calibration import command as calibration
    from ..report import tables

    log = shared.progress()
    if merge:
        found = calibration.merge([Path(name) for name in references], out, force=force)
    elif len(references) > 1:
        raise InputError(f"one SOURCE at a time: {' '.join(references)}; to make one of several files of ranges say --merge")
    elif data is None:
        raise InputError("calibration needs data that is like what the model will see: --data texts.txt")
    else:
        recipe = shared.recipe_of(references[0], log, {name: options.pop(name) for name in shared.MODEL_OPTIONS})
        restart = options.pop("restart")
        request = calibration.request_from_options(data, **options)
        found = calibration.calibrate(
            recipe.source, request, out, options=recipe.source_options, force=force, restart=restart, progress=log
        )
    shared.console().print(tables.calibration_table(found))
    log.say(f"{out}: {calibration.summary(found)}")
    if as_json:
        shared.print_json(calibration.overview(found))
