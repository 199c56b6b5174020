"""Bytes that are no timing cache. The stand-in answers as TensorRT documents it (TensorRT itself needs a GPU): None for bytes
that it cannot read, False for a cache of another GPU or version.

tests/rtx/test_timing_cache.py has the rest, with a real builder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertc.targets._tensorrt import worker

GOOD, OTHERS = b"cache of this GPU", b"cache of another GPU"


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return isinstance(other, Cache) and other.data != OTHERS

    def serialize(self) -> bytes:
        return GOOD


class Config:
    used: Cache | None = None

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return Cache(data) if data in (b"", GOOD, OTHERS) else None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert isinstance(cache, Cache) and not ignore_mismatch
        self.used = None if cache.data == OTHERS else cache
        return self.used is not None

    def get_timing_cache(self) -> Cache | None:
        return self.used


@pytest.mark.parametrize("data", [b"\x80\x04garbage" * 9, GOOD[:-3], OTHERS, b"\0"])
def test_bytes_that_are_no_use_leave_a_note_and_are_replaced(data: bytes, tmp_path: Path) -> None:
    config: Any = Config()
    file = tmp_path / "l4-11.cache"
    notes: list[str] = []
    file.write_bytes(data)
    worker._read_timings(config, file, notes)
    assert config.used.data == b"", "the build begins with an empty one"
    assert any("was not used" in note and str(file) in note for note in notes)
    worker._keep_timings(config, file, notes)
    assert file.read_bytes() == GOOD


def test_a_good_one_is_used_without_a_note(tmp_path: Path) -> None:
    config: Any = Config()
    file = tmp_path / "l4-11.cache"
    notes: list[str] = []
    file.write_bytes(GOOD)
    worker._read_timings(config, file, notes)
    worker._keep_timings(config, file, notes)
    assert config.used.data == GOOD and notes == []
