"""The time of one call: without garbage collection in it, which is as it was afterwards."""

from __future__ import annotations

import gc
import time

import pytest

from bertc.runtime.timing import time_call


def test_a_call_is_timed_without_garbage_collection() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        time.sleep(0.02)

    assert 0.02 <= time_call(call) < 2
    assert seen == [False] and gc.isenabled()


def test_garbage_is_collected_again_after_a_call_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        time_call(lambda: 1 / 0)
    assert gc.isenabled()
