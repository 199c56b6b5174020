"""A compiler that ended, or refused, because the disk or the memory was too small."""

from __future__ import annotations

import errno
import os
import signal

from ...core import BuildFailed, Missing, more_memory, ran_out_in
from .worker import NO_ROOM

LAST = 2000  # characters of a log that say why it ended: earlier ones are of tactics that were tried and left


def raise_shortage(what: str, code: int, said: str) -> None:
    """Raise OSError where the disk, Missing where the memory was too small; nothing where neither is known."""
    if code == NO_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if why := ran_out_in(said[-LAST:]):
        raise Missing(f"{what} ran out of memory: {why}; {more_memory()}")
    if code == -signal.SIGKILL:
        raise BuildFailed(
            f"{what} crashed: {ending(code)}. Linux does that when memory runs out, if nobody else did; {more_memory()}"
        )


def ending(code: int) -> str:
    """How a process ended, by its exit code."""
    if code > 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"
