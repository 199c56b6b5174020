"""The time of one call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any


def time_call(call: Callable[[], Any]) -> float:
    """Seconds that a call takes, without garbage collection in it."""
    gc_was_on = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    finally:
        if gc_was_on:
            gc.enable()
