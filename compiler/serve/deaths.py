"""Workers that end: what a person reads of it, and requests that end every worker which runs them.

A worker is replaced at once however often that happens. A growing pause was tried: of two workers that a client killed again and
again, others had 437 answers of 437 within 60 s without it, and 17 within 90 s with it.
"""

from __future__ import annotations

import collections
import hashlib
import signal

from ..core import Feeds

WINDOW = 60.0  # seconds in which ends of workers are counted
REMEMBERED = 600.0  # seconds for which a request that ended its workers is not run again
MOST = 1024  # such requests


def reason(code: int) -> str:
    """An exit code of a process, as a person reads it: a negative one is a signal."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
    except ValueError:
        return f"exit {code}"


class Recent:
    """Ends of workers within WINDOW."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque()

    def count(self, now: float) -> int:
        """One more at `now` (seconds), and how many there were."""
        self._times.append(now)
        while self._times[0] < now - WINDOW:
            self._times.popleft()
        return len(self._times)


class Deadly:
    """Rows that ended each worker which ran them, by what they hold: a client that tries again must not end two more."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def add(self, model: str, feeds: Feeds, now: float) -> None:
        """Remember a row."""
        while len(self._until) >= MOST:
            del self._until[next(iter(self._until))]
        self._until[_digest(model, feeds)] = now + REMEMBERED

    def holds(self, model: str, feeds: Feeds, now: float) -> bool:
        """Whether a row is remembered; of no cost while there are none."""
        if not self._until:
            return False
        until = self._until.get(key := _digest(model, feeds))
        if until is not None and until < now:
            del self._until[key]
        return until is not None and now <= until


def _digest(model: str, feeds: Feeds) -> bytes:
    made = hashlib.sha256(model.encode())
    for name in sorted(feeds):
        array = feeds[name]
        made.update(f"\0{name} {array.dtype.str} {array.shape}\0".encode())
        made.update(array.tobytes())
    return made.digest()
