"""Errors a user can act on: what was asked, what was found, what to do. One exit code per cause."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class BertcError(Exception):
    """Base of every error that bertc raises on purpose; printed without a traceback."""

    exit_code = 2


class CheckFailed(BertcError):
    """A check ran and failed: accuracy over budget, a precision the engine did not get (exit 1)."""

    exit_code = 1


class InputError(BertcError):
    """Bad input or usage (exit 2)."""

    exit_code = 2


class Missing(BertcError):
    """Something that this machine lacks: a package, a GPU, disk space, torch (exit 3)."""

    exit_code = 3


class SourceError(InputError):
    """The source model cannot be read or exported as asked."""


class RecipeError(InputError):
    """A recipe, a target or a profile that says something impossible."""


class ArtifactError(InputError):
    """An artifact directory that is damaged, of a newer format, or already there."""


class DataError(InputError):
    """Evaluation data that cannot be read or does not fit the model's inputs."""


class ExportFailed(CheckFailed):
    """The exported graph does not compute what the source computes."""


class NotFused(CheckFailed):
    """The graph cannot be prepared for fusion: its opset cannot be converted, say."""


class BuildFailed(CheckFailed):
    """The target's compiler refused or crashed, or built something else than was asked."""


class RunFailed(CheckFailed):
    """A runtime that took the graph fails when it runs it: sizes or values that the nodes do not take."""


class VerifyFailed(CheckFailed):
    """An artifact is further from its source than its budget allows."""


@contextlib.contextmanager
def naming(
    path: Path, others: Iterable[Path] = (), of: type[BertcError] | tuple[type[BertcError], ...] = BertcError
) -> Iterator[None]:
    """Put a path before the message of what fails inside, where that names neither it nor one of `others`.

    Of the classes `of`, but not of what the machine lacks (Missing), nor of data (DataError): the path is not at fault there.
    """
    try:
        yield
    except of as error:
        if not isinstance(error, Missing | DataError) and not any(_names(str(error), each) for each in (path, *others)):
            error.args = (f"{path}: {error}",)
        raise


def _names(message: str, path: Path) -> bool:
    """Whether a message has the last part of a path as a word: a folder may be called `o`."""
    return re.search(rf"(?<![\w.]){re.escape(path.name)}(?!\w)", message) is not None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


NO_NUMBER = re.compile(r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)")


def what_is_wrong(error: BaseException) -> str:
    """What an exception of Python says of a file that was read, in words for who wrote the file: no class of Python's in it."""
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {error.args[0]!r}"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text in UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, AttributeError | TypeError):
        return "a value in it is of another type than bertc writes"
    if isinstance(error, IndexError | OverflowError | MemoryError):
        return "a list or a number in it has a size that bertc does not write"
    found = NO_NUMBER.search(str(error))
    return f"{found[1]} is no number" if found else first_line(error)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 kernel`, `2 kernels`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


SHOWN = 40  # names that an error lists; a folder may hold thousands


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'? Known: ...` for an unknown name, to append to an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{hint} known: {', '.join(names[:SHOWN]) or 'none'}{more}"
