"""Where commands print, and how much: `-q`, `-v` and `--log-level`, the one console of a run, JSON documents."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, message_lines, printable
from ._streams import reader_may_leave, silence

if TYPE_CHECKING:
    from rich.console import Console

    from ..core import Progress

IN_A_PIPE = 2**16  # columns: nothing in a log file is wrapped or cut, unless COLUMNS says how wide it is
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
    handler.setFormatter(LogLines("[%(asctime)s] %(levelname)-8s %(message)s", "%X"))
    if console().is_terminal:
        handler = RichHandler(console=console(), show_path=False, log_time_format="[%X]", omit_repeated_times=False)
        handler.setFormatter(LogLines("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class LogLines(logging.Formatter):
    """A record as lines on which nothing steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return message_lines(super().format(record))


@contextlib.contextmanager
def printable_warnings() -> Iterator[None]:
    """Warnings of any package, for as long as the block lasts, as lines on which nothing steers the terminal."""
    before = warnings.formatwarning

    def lines(*told: Any, **named: Any) -> str:
        return message_lines(before(*told, **named).rstrip("\n")) + "\n"

    warnings.formatwarning = lines
    try:
        yield
    finally:
        warnings.formatwarning = before


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
    from ._console import PlainConsole

    made, told = PlainConsole(quiet=quiet), os.environ.get("COLUMNS", "")
    return made if made.is_terminal or (told.isdecimal() and int(told)) else PlainConsole(width=IN_A_PIPE, quiet=quiet)


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


def print_error(text: str) -> bool:
    """An error, on stderr: its further lines are indented, and nothing in it steers the terminal. False where
    stderr takes none."""
    return _say(message_lines(text))


def _say(text: str, newline: bool = True) -> bool:
    """On stderr; where that takes nothing, the exit code says it alone."""
    try:
        click.echo(text, nl=newline, err=True)
    except OSError:
        silence(sys.stderr)
        return False
    return True


def print_usage_error(error: click.ClickException) -> None:
    """As click shows it, what was typed (or came from a file's name) escaped as in any error."""
    text, shown = error.format_message(), io.StringIO()
    error.show(shown)
    _say(printable(shown.getvalue().replace(text, message_lines(text))), newline=False)


def print_json(document: Any) -> None:
    """The document on stdout, every value exact; what is invisible is escaped as JSON does it, for who reads it on a terminal."""
    if sys.stdout is None:
        raise InputError("--json: stdout is closed; give it somewhere to go")
    text = json.dumps(document, indent=1, ensure_ascii=False)
    with reader_may_leave():
        click.echo(text if text.isascii() and "\x7f" not in text else "".join(map(_in_json, text)))


def _in_json(character: str) -> str:
    """A character of a JSON document; one that is not printed can only stand in a string, as UTF-16 code units."""
    if printable(character) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
