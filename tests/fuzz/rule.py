"""The rule for every file that a stranger may have written, whatever is wrong with it.

A command ends with a documented exit code (0, 1, 2 or 3: 4 is a bug), its message names the file, no traceback is shown, nothing
is left at the output or beside it, and it takes less than 20 s and 1.5 GB. In this process: a try costs milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from bertc import cli

SECONDS = 20
MEMORY = 1536 * 2**20
ROOM = 4 * 2**30  # of address space above what is mapped already: a mistake ends as MemoryError, not as a killed test run
DOCUMENTED = (0, 1, 2, 3)


class Hung(BaseException):
    """Not an Exception: no handler of the command line takes it."""


def obey(args: Sequence[str], names: Path, out: Path | None = None) -> int:
    """Run `bertc ARGS` and hold what it does against the rule; returns the exit code.

    `names` is the file (or folder) that an error must name; `out` is where the command would write.
    Raises AssertionError with what was said where the rule is broken.
    """
    words = [str(word) for word in args]
    before = _entries(out)
    resident = _peak(reset=True)
    told = io.StringIO()
    start = time.monotonic()
    with _bounded(words), contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = cli.run(words)
    took, used = time.monotonic() - start, _peak() - resident
    said = f"bertc {' '.join(words)}: exit {code} after {took:.1f} s, {used / 2**20:.0f} MiB: {told.getvalue()[-2000:]}"
    assert code in DOCUMENTED and "Traceback" not in told.getvalue(), said
    assert took < SECONDS, f"too slow: {said}"
    assert used < MEMORY, f"too much memory: {said}"
    if code == 0:
        return code
    # Long paths are wrapped, at hyphens and slashes too.
    assert names.name in re.sub(r"\s+", "", told.getvalue()) or names.name in told.getvalue(), (
        f"{names.name} is not named: {said}"
    )
    left = sorted(_entries(out) - before)
    assert not left, f"left behind: {left}: {said}"
    return code


def _entries(out: Path | None) -> set[str]:
    """What lies at an output and beside it."""
    if out is None:
        return set()
    inside = {str(path) for path in out.rglob("*")} if out.is_dir() else set()
    return inside | ({str(path) for path in out.parent.iterdir()} if out.parent.is_dir() else set())


@contextlib.contextmanager
def _bounded(words: Sequence[str]) -> Iterator[None]:
    """An end to the time and to the memory of what runs inside."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung(f"bertc {' '.join(words)} ran for more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except Hung as error:
        raise AssertionError(str(error)) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak(reset: bool = False) -> int:
    """Bytes of memory in use, at most since the last reset; with `reset`, now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
