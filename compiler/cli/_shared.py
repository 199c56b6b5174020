"""What commands share: options made from a recipe's fields, where things are printed, and how SOURCE is understood."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ..core import Progress
    from ..recipe import Recipe

Command = Callable[..., Any]
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
MODEL_OPTIONS = ("task", "revision", "allow_pickle", "trust_remote_code", "ids", "opset")
IN_A_PIPE = 2**16  # columns: nothing in a log is wrapped or cut
SOURCE_OPTIONS = (*MODEL_OPTIONS, "seed", "goldens", "data")


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
    kind, help_text = str(field.type), field.metadata["help"]
    flag = "--" + field.name.replace("_", "-")
    if field.name in ("verify", "fuse", "prove"):
        return click.option(f"--{field.name}/--no-{field.name}", default=None, help=help_text)
    if kind == "bool":
        return click.option(flag, is_flag=True, default=None, help=help_text)
    if kind.startswith(("tuple", "Mapping")):
        return click.option("--" + field.name.removesuffix("s"), field.name, multiple=True, help=help_text)
    return click.option(flag, field.name, type=int if kind == "int" else str, default=None, help=help_text)


def console() -> Console:
    from rich.console import Console

    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=IN_A_PIPE)


def progress() -> Progress:
    from ..core import Progress

    return Progress(console())


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
    return dataclasses.replace(found, **given)


def limits_of(texts: Sequence[str]) -> dict[str, float]:
    limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError as error:
            raise InputError(f"budget {text!r} is not NAME=NUMBER, as in cosine=0.9999") from error
    return limits


def show_artifacts(made: Sequence[Any], as_json: bool) -> None:

    from ..report import tables

    console().print(tables.artifacts_table(made))
    if as_json:
        print_json({"artifacts": [{"path": str(a.path), "manifest": a.manifest} for a in made]})


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))
