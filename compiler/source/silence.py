"""Silence around torch and transformers."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast


class _OtherThreads:
    """stderr for every thread but this one: torch prints the traced code when it refuses it; a progress bar goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch and transformers say nothing: what matters is checked and becomes an error or a note of bertc."""
    # Not imported for the sake of silence alone: a factory may do without transformers.
    hf_logging: Any = sys.modules.get("transformers.utils.logging")
    before, bars = logging.root.manager.disable, hf_logging is not None and hf_logging.is_progress_bar_enabled()
    logging.disable(logging.CRITICAL)
    if bars:
        hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(cast(TextIO, _OtherThreads(sys.stderr))):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            hf_logging.enable_progress_bar()
