"""Sessions whose runs fail in words, and end: a Loop may go on for ever, and ONNX Runtime has no limit of its own."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import BuildFailed, InputError, RunFailed, first_line

LIMIT = "BERTC_LOOP_SECONDS"
SECONDS = 300.0  # of one run; a decoder's loop over 512 tokens takes some tens
NAME = b"Loop"  # as the operator's name lies in a file


class Session:
    """An ONNX Runtime session whose `run` raises RunFailed with ONNX Runtime's words: its own exceptions share no base class."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], options: Any = None) -> Any:
        """As the session's."""
        try:
            return self._session.run(names, feeds, options)
        except Exception as error:
            raise RunFailed(f"ONNX Runtime loads the graph and cannot run it: {first_line(error)}") from error


class BoundedSession(Session):
    """A session whose `run` raises BuildFailed after the limit, and from then on at once."""

    def __init__(self, session: Any, seconds: float) -> None:
        super().__init__(session)
        self._seconds, self._hung = seconds, False

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], options: Any = None) -> Any:
        """As the session's. ONNX Runtime looks at `terminate` before each node, of the bodies of loops too."""
        import onnxruntime as ort

        options = options or ort.RunOptions()
        timer = threading.Timer(self._seconds, setattr, (options, "terminate", True))
        timer.daemon = True
        if not self._hung:
            timer.start()
            try:
                return super().run(names, feeds, options)
            except RunFailed:
                if not options.terminate:
                    raise
                self._hung = True
            finally:
                timer.cancel()
        raise BuildFailed(
            f"a run of the model did not end within {self._seconds:g} s, and it has a Loop, which may never end; where it is "
            f"only slow, {LIMIT} in the environment allows more seconds"
        )


def may_loop(model: Path | str | bytes) -> bool:
    """Whether a model, a file or its bytes, holds the name of the operator Loop anywhere. (A Scan ends with what it reads.)"""
    if isinstance(model, bytes):
        return NAME in model
    if not Path(model).is_file() or not Path(model).stat().st_size:
        return False
    with Path(model).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(NAME) >= 0


def allowed_seconds() -> float:
    """Seconds that a run may take where there is a Loop. InputError for what is no number above 0."""
    given = os.environ.get(LIMIT, str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InputError(f"{LIMIT} is {given!r}; it is a number of seconds above 0")
    return seconds
