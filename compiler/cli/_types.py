"""What options and arguments take: names of a closed set, targets, families, sources; a typing slip is told the nearest name.

Names are read when help, a value or a completion asks for them: the help of a command costs what that command needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..core import RecipeError, did_you_mean, why_broken

FILE = click.Path(path_type=Path)  # whoever opens it says what is wrong with it, and what to do
if TYPE_CHECKING:
    TextType = click.ParamType[str]
else:
    TextType = click.ParamType  # generic from click 8.4 on


class Input(click.Path):
    """A path to read. Whoever opens it says what is wrong with it; a link that leads nowhere is no file to any of them."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if why := why_broken(path):
            self.fail(f"cannot open {path}: {why}", param, ctx)
        return path


class Number(click.FloatRange):
    """A number in a range. Never NaN, with which every comparison is false: a limit that says nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


INPUT = Input()
COUNT = click.IntRange(min=1)
SHARE = Number(0, 1)
SEED = click.IntRange(min=0)
SHOWN = 40  # columns: a longer list of names goes into the help text


class OneOf(TextType):
    """One name of a closed set."""

    def __init__(self, what: str, names: Callable[[], Iterable[str]]) -> None:
        self.name, self.names = what, names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in tuple(self.names()):
            self.fail(f"unknown {self.name} {value!r}{did_you_mean(value, self.names())}", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:
        return f"[{listed}]" if len(listed := "|".join(self.names())) <= SHOWN else None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return matching(self.names(), incomplete)


class Option(click.Option):
    """An option whose help lists the names that do not fit beside it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.type, OneOf) or self.type.get_metavar(self):
            return record
        return record[0], f"{record[1]} One of: {', '.join(self.type.names())}."


class Target(TextType):
    """`NAME[:SM,...][=PRECISION]`; the text itself is the value."""

    name = "target"

    def __init__(self, *, precision: bool = True) -> None:
        self.precision = precision

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "NAME[:SM,...]" + ("[=PRECISION]" if self.precision else "")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from .. import precision, targets

        try:
            spec = targets.parse_spec(value)
        except RecipeError as error:
            self.fail(str(error), param, ctx)
        if spec.precision and not self.precision:
            self.fail(f"{value!r} names a precision; ranges are measured in float32: {value.partition('=')[0]}", param, ctx)
        if spec.precision and spec.precision not in precision.names():
            self.fail(f"unknown precision {spec.precision!r}{did_you_mean(spec.precision, precision.names())}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """A name; behind its `:` one SM or GPU model more; behind a `=` the precision."""
        from .. import precision, targets
        from ..core import gpu_models

        known = targets.names()
        body, equals, _ = incomplete.partition("=")
        if equals:
            return matching([f"{body}={mode}" for mode in precision.names()] if self.precision else [], incomplete)
        name, colon, listed = body.partition(":")
        if not colon:
            return matching(known, incomplete)
        given = listed.split(",")[:-1]
        sms = targets.get(name).SMS if name in known else ()
        words = [*sms, *(gpu.name for gpu in gpu_models.TABLE if gpu.sm in sms)]
        return matching([f"{name}:{','.join([*given, word])}" for word in words if word not in given], incomplete)


class Family(TextType):
    """`FAMILY[:LAYERS]`: the fusions that a model family must get."""

    name = "family"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "FAMILY[:LAYERS]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from ..fusions import families as contracts

        try:
            contracts.parse(value)
        except RecipeError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return matching(families(), incomplete)


class Source(TextType):
    """A path, a recipe's name, `package.module:factory` or a hub id: what it is, is decided when it is opened."""

    name = "source"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from .. import recipe

        # The item of type "file" first: bash forgets what stands before it.
        return [CompletionItem(incomplete, type="file"), *matching(recipe.names(), incomplete)]


class NameOf(TextType):
    """A name of the kind that `what`, the argument before it, says."""

    name = "name"

    def __init__(self, names: Callable[[str | None], Iterable[str]]) -> None:
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return matching(self.names(ctx.params.get("what")), incomplete)


class Entry(TextType):
    """An entry of a fleet, or one of its models."""

    name = "entry"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ..core import BertcError
        from ..fleet import config

        try:
            # An option without its value stops click before it tells arguments apart: they are still `args`.
            fleet = config.read(Path(next(iter(ctx.args), "fleet.toml")))
        except BertcError:
            return []  # the command itself will say what is wrong with the file
        return matching([*fleet.models, *(entry.name for entry in fleet.entries)], incomplete)


def matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Names that a shell can take; those of a fleet may hold anything."""
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and name.isprintable()]


def families() -> tuple[str, ...]:
    from ..fusions import families

    return tuple(families.FAMILIES)


def tasks() -> tuple[str, ...]:
    from ..source import types

    return types.TASKS


def integer_types() -> tuple[str, ...]:
    from ..source import types

    return types.IDS


def methods() -> tuple[str, ...]:
    from ..quant.calibration import METHODS

    return tuple(METHODS)
