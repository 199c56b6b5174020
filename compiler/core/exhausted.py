"""Memory that ran out: how Python and the libraries say it, and what a user is told."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

from .errors import BertcError, InputError, RunFailed
from .machine import available_bytes

# Of C++, the loader, glibc, PyTorch, ONNX Runtime, TensorRT, and Python's threads, which need address space for their stacks.
_SAID = re.compile(
    r"bad_alloc|bad allocation|failed to map segment|[Cc]annot allocate memory|can't allocate memory|[Ff]ailed to allocate memory"
    r"|can't start new thread|Resource temporarily unavailable|[Oo]ut of memory|OutOfMemory|OUT_OF_MEMORY"
)

# Given back before the first word about it is made: what ran out leaves no room for a message. Address space, never touched.
RESERVE = 4 * 2**20
_RESERVE = bytearray(RESERVE)


def ran_out(error: BaseException) -> str:
    """What of an error, or of one that caused it, says that memory ran out; '' where none does.

    Of an InputError a MemoryError of Python does not: that is how a file that claims too much is found.
    """
    of_input = isinstance(error, InputError)
    seen: BaseException | None = error
    while seen is not None:
        python = isinstance(seen, MemoryError) and not of_input
        if python or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return str(seen) or type(seen).__name__
        of_library = isinstance(seen, RuntimeError | ImportError | OSError) or type(seen).__module__.startswith("onnxruntime")
        if of_library and (found := ran_out_in(str(seen))):
            return found
        seen = seen.__cause__ or seen.__context__
    return ""


def stop_if_exhausted(error: BaseException) -> None:
    """Raises MemoryError from `error` where memory ran out: what a handler says of a model or a fusion would not be true."""
    if why := ran_out(error):
        raise MemoryError(why) from error


def raise_unless_of_run(error: Exception) -> None:
    """Raises what says nothing of a model that was run: the system's errors, memory that ran out, bertc's own but RunFailed."""
    if isinstance(error, BertcError | OSError | MemoryError) and not isinstance(error, RunFailed):
        raise error
    stop_if_exhausted(error)


def ran_out_in(text: str) -> str:
    """The first line that says that memory ran out; '' where none does."""
    return next((line.strip()[:300] for line in text.splitlines() if _SAID.search(line)), "")


def at_limit() -> str:
    """That this process took all the address space it may, if so: libraries then fail in ways that do not say it."""
    limit, status = _limit(), Path("/proc/self/status")
    if not limit or not status.is_file():
        return ""
    _RESERVE.clear()
    peak = next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmPeak:")), 0)
    return f"{peak / 2**20:.0f} MiB of address space were taken" if peak > limit - 2 * RESERVE else ""


def more_memory() -> str:
    """How much there is, and what to do."""
    _RESERVE.clear()
    free = available_bytes()
    known = [f"{free / 2**20:.0f} MiB are free"] if free is not None else []
    limit = _limit()
    known += [f"a process may take {limit / 2**20:.0f} MiB (ulimit -v)"] if limit else []
    return f"{', '.join(known) or 'memory is short'}; give it more, or build for a smaller batch or length (--profile)"


def _limit() -> int:
    if sys.platform == "win32":
        return 0
    try:
        import resource
    except ImportError:  # not even its file can be mapped
        return 0
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 0 if limit == resource.RLIM_INFINITY else limit
