"""bertc profile lengths.txt|requests.jsonl: length buckets and optimisation profiles from real requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import InputError
from . import _shared as shared

if TYPE_CHECKING:
    from ..core import Progress
    from ..serve import TrafficModel


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="LENGTHS.txt|REQUESTS.jsonl")
@click.option("--source", help="the model (SOURCE, export or artifact): its tokenizer for texts, and its limits")
@click.option("--buckets", "asked", type=int, help="so many buckets, in place of the number that the rule picks")
@click.option("--max-buckets", default=8, show_default=True, help="look at 1 to this many")
@click.option("--multiple", default=8, show_default=True, help="bounds are multiples of this")
@click.option("--worth", default=0.05, show_default=True, help="a bucket more must save this share of the tokens computed")
@click.option("--longest", type=int, help="the longest request to make room for, seen or not; a longer line is an error")
@click.option("--max-batch", type=int, help="the largest batch of every profile, seen or not")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="draw tokens wasted by number of buckets, as .svg")
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="write the profiles into this recipe.toml")
@shared.JSON
def profile(
    path: Path,
    source: str | None,
    asked: int | None,
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
    with --source. The bounds are the best there are for each number of buckets, not an approximation.
    """
    from ..report import figures, plots, tables
    from ..serve import buckets, traffic
    from ..serve import recipe_edit as recipe_file

    log = shared.progress()
    model = _model(source, longest, log)
    found = traffic.read_traffic(path, model.longest, model.encode)
    plan = buckets.plan_buckets(found, max(max_buckets, asked or 0), multiple, model.longest, longest)
    chosen, why = buckets.choose_bucket_count(plan, asked, worth)
    made = buckets.bucket_profiles(found, plan.choices[chosen].bounds, model, max_batch)
    texts = [buckets.profile_text(each) for each in made]
    notes = buckets.profile_notes(found, made, model)
    if plot_path is not None:
        plot_path.write_text(plots.render_svg(figures.buckets_plot(plan, path.name)), encoding="utf-8")
    shared.console().print(tables.buckets_table(plan, chosen))
    log.say(f"{chosen + 1} bucket{'s' * (chosen > 0)}: {why}")
    if recipe_path is not None:
        log.say(recipe_file.set_profiles(recipe_path, texts, source))
    for note in notes:
        log.note(note)
    for each in texts:
        log.say(f"--profile {each}")
    if as_json:
        shared.print_json(buckets.to_json(found, plan, chosen, why, made) | {"notes": list(notes)})


def _model(source: str | None, longest: int | None, log: Progress) -> TrafficModel:
    """The model's names and limits, the longest request lowered to what was asked for."""
    from ..serve import traffic

    if longest is not None and longest < 1:
        raise InputError(f"--longest {longest}: lengths are whole numbers from 1 on")
    if source is None:
        return dataclasses.replace(traffic.TrafficModel(), longest=longest)
    recipe = shared.recipe_of(source, log, {})
    with log.stage("open the model"):
        model = traffic.traffic_model(recipe.source, recipe.source_options)
    if longest is None:
        return model
    if model.longest is not None and longest > model.longest:
        raise InputError(f"--longest {longest}: {source} takes {model.longest} at most")
    encode = model.encode and dataclasses.replace(model.encode, max_length=longest)
    return dataclasses.replace(model, longest=longest, encode=encode)
