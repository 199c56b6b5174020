"""bertc profile lengths.txt|requests.jsonl: length buckets and optimisation profiles from real requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import InputError, check_writable, write_text
from . import _shared as shared
from ._command import Command
from ._output import console, print_json, print_result, progress
from ._types import COUNT, FILE, INPUT, SHARE, Source

if TYPE_CHECKING:
    from ..core import Progress
    from ..serve import TrafficModel


SECTION = "Build"
EXAMPLES = (
    "bertc profile lengths.txt --plot waste.svg",
    "bertc profile requests.jsonl --source out/minilm --recipe mine.toml",
)


@click.command(cls=Command, short_help="Choose length buckets and profiles from real requests", examples=EXAMPLES)
@click.argument("path", type=INPUT, metavar="LENGTHS.txt|REQUESTS.jsonl")
@click.option("--source", type=Source(), metavar="SOURCE", help="The model or artifact: its tokenizer for texts, and its limits.")
@click.option(
    "--buckets",
    "wanted",
    type=COUNT,
    metavar="NUMBER",
    help="Make so many buckets; default: as many as --worth allows.",
)
@click.option("--max-buckets", type=COUNT, metavar="NUMBER", default=8, show_default=True, help="Look at 1 to this many.")
@click.option("--multiple", type=COUNT, metavar="NUMBER", default=8, show_default=True, help="Bounds are multiples of this.")
@click.option(
    "--worth",
    type=SHARE,
    metavar="SHARE",
    default=0.05,
    show_default=True,
    help="One bucket more must save this share of the tokens.",
)
@click.option("--longest", type=COUNT, metavar="NUMBER", help="Longest request to make room for; a longer one is an error.")
@click.option("--max-batch", type=COUNT, metavar="NUMBER", help="Largest batch of every profile.")
@click.option("--plot", "plot_path", type=FILE, metavar="FILE", help="Draw wasted tokens by number of buckets, as .svg.")
@click.option("--recipe", "recipe_path", type=FILE, metavar="FILE", help="Write the profiles into this recipe.toml.")
@shared.JSON
def profile(
    path: Path,
    source: str | None,
    wanted: int | None,
    max_buckets: int,
    multiple: int,
    worth: float,
    longest: int | None,
    max_batch: int | None,
    plot_path: Path | None,
    recipe_path: Path | None,
    as_json: bool,
) -> None:
    """Choose length buckets that compute the fewest padded tokens for the requests of a file, and profiles for them.

    A line is LENGTH, LENGTH COUNT, or JSON: {"length": 17}, {"lengths": [17, 30]} for a batch, {"text": ...} or {"texts": [...]}
    with --source. For each number of buckets the bounds are optimal.
    """
    from ..report import figures, plots, tables
    from ..serve import buckets, traffic
    from ..serve import recipe_edit as recipe_file

    log = progress()
    check_writable(plot_path, "--plot")
    check_writable(recipe_path, "--recipe")
    model = _model(source, longest, log)
    found = traffic.read_traffic(path, model.longest, model.encode)
    plan = buckets.plan_buckets(found, max(max_buckets, wanted or 0), multiple, model.longest, longest)
    chosen, why = buckets.choose_bucket_count(plan, wanted, worth)
    made = buckets.bucket_profiles(found, plan.choices[chosen].bounds, model, max_batch)
    texts = tuple(map(buckets.profile_text, made))
    notes = buckets.profile_notes(found, made, model)
    if plot_path is not None:
        write_text(plot_path, plots.render_svg(figures.buckets_plot(plan, path.name)), "--plot")
    console().print(tables.buckets_table(plan, chosen))
    print_result(f"{chosen + 1} bucket{'s' * (chosen > 0)}: {why}")
    if recipe_path is not None:
        print_result(recipe_file.set_profiles(recipe_path, texts, source))
    for note in notes:
        log.note(note)
    for text in texts:
        print_result(f"--profile {text}")
    if as_json:
        print_json(buckets.to_json(found, plan, chosen, why, made) | {"notes": list(notes)})


def _model(source: str | None, longest: int | None, log: Progress) -> TrafficModel:
    """The model's names and limits, the longest request lowered to --longest."""
    from ..serve import traffic

    if source is None:
        return dataclasses.replace(traffic.TrafficModel(), longest=longest)
    recipe = shared.recipe_of(source, log, {})
    with log.stage("open the model"):
        model = traffic.traffic_model(recipe.source, recipe.source_options)
    if longest is None:
        return model
    if model.longest is not None and longest > model.longest:
        raise InputError(f"--longest {longest}: {source} takes at most {model.longest}")
    encode = model.encode and dataclasses.replace(model.encode, max_length=longest)
    return dataclasses.replace(model, longest=longest, encode=encode)
