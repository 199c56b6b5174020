"""What commands share: options made from a recipe's fields, how SOURCE is understood, how artifacts are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core import CheckFailed, InputError
from ._output import console, print_error, print_json
from ._types import FILE, Family, OneOf, Option, Source, Target, integer_types, tasks

if TYPE_CHECKING:
    from ..core import Progress
    from ..recipe import Recipe

Command = Callable[..., Any]
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
MODEL_OPTIONS = ("task", "revision", "allow_pickle", "trust_remote_code", "ids", "opset", "adapter")
GIVEN_OPTIONS = ("revision", "allow_pickle", "trust_remote_code", "adapter")  # of a source that an artifact is held against
SOURCE_OPTIONS = (*MODEL_OPTIONS, "seed", "goldens", "data")
OUT_DIRECTORY = click.option("-o", "--out", required=True, type=FILE, metavar="DIR", help="The directory to write.")
FORCE_ARTIFACT = click.option("--force", is_flag=True, help="Replace an artifact that is there.")
FORCE_FILE = click.option("--force", is_flag=True, help="Replace a file that is there.")
# The fields of a recipe that take more than a text; the others say in the recipe what they take.
TYPES: dict[str, Any] = {
    "source": Source(),
    "task": OneOf("task", tasks),
    "ids": OneOf("type", integer_types),
    "goldens": OneOf("kind of goldens", lambda: ("synthetic", "data")),
    "targets": Target(),
    "expect": Family(),
}


def recipe_options(*names: str) -> Callable[[Command], Command]:
    """Options made from the fields of Recipe, so that a recipe file and the command line cannot drift apart."""

    def decorate(command: Command) -> Command:
        from ..recipe import Recipe

        fields = {f.name: f for f in dataclasses.fields(Recipe)}
        for name in reversed(names):
            command = _option(fields[name])(command)
        return command

    return decorate


def _option(field: Any) -> Callable[[Command], Command]:
    kind, help_text, takes = str(field.type), field.metadata["help"], field.metadata["takes"]
    flag = "--" + field.name.replace("_", "-")
    if field.name in ("verify", "fuse", "prove"):
        return click.option(f"--{field.name}/--no-{field.name}", default=None, help=help_text)
    if kind == "bool":
        return click.option(flag, is_flag=True, default=None, help=help_text)
    of = TYPES.get(field.name, click.INT if kind == "int" else click.STRING)
    if kind.startswith(("tuple", "Mapping")):
        flag = "--" + field.name.removesuffix("s")
        return click.option(flag, field.name, multiple=True, type=of, metavar=takes, help=help_text)
    return click.option(flag, field.name, cls=Option, type=of, metavar=takes, default=None, help=help_text)


def recipe_of(reference: str, log: Progress, options: dict[str, Any]) -> Recipe:
    """What SOURCE means, with the options that were given put over it."""
    from .. import recipe as recipes

    found, meaning = recipes.resolve(reference)
    log.say(meaning)
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    if "budget" in given:
        given["budget"] = limits_of(given["budget"])
    if given.get("precision") and not given.get("targets"):
        given["targets"] = tuple(text.partition("=")[0] for text in found.targets)
    recipe = dataclasses.replace(found, **given)
    recipes.check(recipe)
    recipes.check_data(recipe)
    return recipe


def limits_of(texts: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER` of --budget. RecipeError for a limit that there is not."""
    from .. import verification

    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError as error:
            raise InputError(f"budget {text!r} is not NAME=NUMBER, as in cosine=0.9999") from error
        if name in limits and limits[name] != limit:
            raise InputError(f"budget {name} is {limits[name]:g} and {limit:g}; give one of them")
        limits[name] = limit
    verification.check_limits(limits)
    return limits


def show_artifacts(made: Sequence[Any], as_json: bool) -> None:
    from ..report import tables

    console().print(tables.artifacts_table(made))
    if as_json:
        print_json({"artifacts": [{"path": str(a.path), "manifest": a.manifest} for a in made]})


def fail_check(reasons: Sequence[str]) -> None:
    """Exit 1 where there is a reason. Not by CheckFailed: the JSON document is printed already."""
    if reasons:
        print_error(f"error: {'; '.join(reasons)}")
        raise click.exceptions.Exit(CheckFailed.exit_code)
