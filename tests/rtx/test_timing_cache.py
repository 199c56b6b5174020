"""A timing cache lies in a store that others write to: what is surely none leaves a note, and never costs the build.

TensorRT-RTX takes any bytes for a cache; what TensorRT says of bytes that are none is in tests/plain/fleet/test_timing_cache.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx as trt

from bertc.targets._tensorrt import worker


@pytest.fixture(scope="module")
def config() -> Any:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    return builder.create_builder_config(), (builder, logger)


def link(file: Path) -> None:
    secret = file.with_name("secret")
    secret.write_bytes(b"mine")
    file.symlink_to(secret)


def sparse(file: Path) -> None:
    with file.open("wb") as handle:
        handle.truncate(worker.MOST_CACHE + 1)


@pytest.mark.parametrize("spoil", [link, sparse, Path.mkdir])
def test_what_is_no_timing_cache_is_left_alone_with_a_note(spoil: Callable[[Path], None], config: Any, tmp_path: Path) -> None:
    file, notes = tmp_path / "l4-1.cache", []
    spoil(file)
    worker._read_timings(config[0], file, notes)
    assert any("was not used" in note and str(file) in note for note in notes), notes
    worker._keep_timings(config[0], file, notes)
    if spoil is Path.mkdir:
        assert "was not written" in notes[-1]
        return
    after: list[str] = []
    worker._read_timings(config[0], file, after)
    assert after == [] and not file.is_symlink(), "the next build has a good one"
    if spoil is link:
        assert (tmp_path / "secret").read_bytes() == b"mine", "nothing is written through a link"


def test_no_file_and_a_good_one_need_no_note(config: Any, tmp_path: Path) -> None:
    file, notes = tmp_path / "l4-1.cache", []
    worker._read_timings(config[0], file, notes)
    worker._keep_timings(config[0], file, notes)
    worker._read_timings(config[0], file, notes)
    worker._keep_timings(config[0], file, notes)
    assert notes == [] and file.stat().st_size > 0
