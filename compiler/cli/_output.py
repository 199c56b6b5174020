"""Where commands print, and how much: `-q`, `-v` and `--log-level`, the one console of a run, JSON documents."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..core import Progress

IN_A_PIPE = 2**16  # columns: nothing in a log file is wrapped or cut
LEVELS = ("debug", "info", "warning", "error")
QUIET, LEVEL, CONSOLE = "bertc.quiet", "bertc.level", "bertc.console"  # keys of click's `meta`, which a command line shares


def verbosity_options() -> list[click.Option]:
    """`-q`, `-v` and `--log-level`, for every command; given before and after a command's name, the later one counts."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_keep_quiet,
            help="Hide notes and progress; keep results.",
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_keep_verbose, help="Log each step and its seconds."
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(LEVELS),
            expose_value=False,
            callback=_keep_level,
            help="Log to stderr from this level on; -v is debug.",
        ),
    ]


def _keep_quiet(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        context.meta[QUIET] = True


def _keep_verbose(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        context.meta[LEVEL] = "debug"


def _keep_level(context: click.Context, option: click.Parameter, given: str | None) -> None:
    if given:
        context.meta[LEVEL] = given


@contextlib.contextmanager
def logging_to_stderr(context: click.Context) -> Iterator[None]:
    """What bertc logs, on the console of this run, for as long as a command runs; nothing is set up unless it was asked for."""
    level = context.meta.get(LEVEL, "error" if context.meta.get(QUIET) else None)
    if level is None:
        yield
        return
    from rich.logging import RichHandler

    logger = logging.getLogger("bertc")
    before = logger.level
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)-8s %(message)s", "%X"))
    if console().is_terminal:
        handler = RichHandler(console=console(), show_path=False, log_time_format="[%X]", omit_repeated_times=False)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def console() -> Console:
    """The console of this run, on stderr: one, so that log lines and a live bar do not write over each other."""
    context = click.get_current_context(silent=True)
    if context is None:
        return new_console()
    if CONSOLE not in context.meta:
        context.meta[CONSOLE] = new_console()
    found: Console = context.meta[CONSOLE]
    return found


def new_console(*, quiet: bool = False) -> Console:
    from rich.console import Console

    made = Console(stderr=True, quiet=quiet)
    return made if made.is_terminal else Console(stderr=True, width=IN_A_PIPE, quiet=quiet)


def is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def progress_console() -> Console:
    """The console for what only says how far a command is: silent with `-q`."""
    return new_console(quiet=True) if is_quiet() else console()


def progress() -> Progress:
    from ..core import Progress

    return Progress(console(), quiet=is_quiet())


def print_result(text: str) -> None:
    """A line that answers what was asked: `-q` keeps it."""
    console().print(text, highlight=False, markup=False)


def print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))
