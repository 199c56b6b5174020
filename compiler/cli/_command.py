"""What every command is: options for how much it says, and help that ends with examples."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..core import ArtifactError, CheckFailed, SourceError, did_you_mean, naming
from ._output import logging_to_stderr, verbosity_options

OF_FILES = (ArtifactError, CheckFailed, SourceError)  # the others are of options, data, or the machine


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Lines that can be copied, so never wrapped: \\b is click's mark for that."""
    with formatter.section("Examples"):
        formatter.write_text("\n".join(("\b", *examples)))


def _refuse_repeated(given: Sequence[click.Parameter]) -> None:
    """An option that takes one value, or has a --no- of its own, given twice: click takes the last one, and says nothing."""
    options = [each for each in given if isinstance(each, click.Option) and not each.multiple]
    for option in options:
        if options.count(option) > 1 and (not option.is_flag or option.secondary_opts):
            name = "/".join([*option.opts, *option.secondary_opts])
            raise click.UsageError(f"{name} is given {options.count(option)} times; give it once")


class Command(click.Command):
    """A command with `-q`, `-v`, `--log-level` and `examples`, command lines that its help ends with."""

    def __init__(self, *, examples: Sequence[str], params: list[click.Parameter] | None = None, **named: Any) -> None:
        super().__init__(params=[*(params or []), *verbosity_options()], **named)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _refuse_repeated(self.make_parser(ctx).parse_args([*args])[2])
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)

    def invoke(self, ctx: click.Context) -> Any:
        with logging_to_stderr(ctx), self._naming(ctx):
            return super().invoke(ctx)

    def _naming(self, ctx: click.Context) -> contextlib.AbstractContextManager[None]:
        """What fails of a file or folder that a command takes as its one argument is told with its name."""
        arguments = [ctx.params.get(str(each.name)) for each in self.params if isinstance(each, click.Argument)]
        given = [value for value in ctx.params.values() if isinstance(value, str | Path) and os.fspath(value)]
        if len(arguments) != 1 or not isinstance(arguments[0], str | Path) or not Path(arguments[0]).exists():
            return contextlib.nullcontext()
        return naming(Path(arguments[0]), [Path(value) for value in given], OF_FILES)


class Group(click.Group):
    """Commands below one name, with the same options and examples."""

    command_class = Command

    def __init__(self, *, examples: Sequence[str], params: list[click.Parameter] | None = None, **named: Any) -> None:
        super().__init__(params=[*(params or []), *verbosity_options()], **named)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and a typing slip is told the nearest command."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)
