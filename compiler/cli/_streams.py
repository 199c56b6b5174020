"""Streams that take nothing more: a reader who left, a full disk, a stdout that is open for reading."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """`| head -1` closes the pipe when it has what it wants: nothing failed, and the exit code stays."""
    try:
        yield
    except BrokenPipeError:
        silence(sys.stdout)


def silence(stream: Any) -> None:
    """What is still to be written to a stream that takes nothing more goes nowhere; else Python fails again as it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, stream.fileno())
        os.close(target)


def is_of_stdout(error: OSError) -> bool:
    """Whether stdout is what could not be written: all that goes there goes by `click.echo`."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code is click.echo.__code__
