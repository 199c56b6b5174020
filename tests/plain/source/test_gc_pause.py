"""The garbage collector while a source is opened: full passes come later, and its settings come back, after a failure too."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import bertc
from bertc.core.errors import BertcError
from bertc.source.gc_pause import SELDOM, paused_gc


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_only_full_passes_are_postponed() -> None:
    gc.set_threshold(600, 9, 8)
    with paused_gc():
        assert gc.isenabled()
        assert gc.get_threshold() == (600, 9, SELDOM)
    assert gc.get_threshold() == (600, 9, 8)


@pytest.mark.parametrize("asked", [(0, 10, 10), (700, 10, 2 * SELDOM)], ids=["off", "later still"])
def test_who_wants_fewer_passes_keeps_that(asked: tuple[int, int, int]) -> None:
    gc.set_threshold(*asked)
    with paused_gc():
        young, _, full = gc.get_threshold()
        assert young == asked[0]
        assert full >= asked[2]


def test_a_failed_build_leaves_the_settings_as_they_were(tmp_path: Path) -> None:
    gc.set_threshold(600, 9, 8)
    with pytest.raises(BertcError):
        bertc.build(str(tmp_path / "nothing"), str(tmp_path / "out"), targets=["null"])
    assert gc.get_threshold() == (600, 9, 8)
