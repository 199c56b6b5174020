"""Rows of a sample: those of its masks, else of its first input that has an axis."""

from __future__ import annotations

import numpy as np
import pytest

from bertc.data.samples import Sample, row_count


@pytest.mark.parametrize(
    ("feeds", "rows"),
    [
        ({"table": np.zeros((9, 2), np.float32), "attention_mask": np.ones((3, 4), np.int64)}, 3),
        ({"scalar": np.float32(1), "x": np.zeros((5, 2), np.float32)}, 5),
        ({"attention_mask": np.ones(4, np.int64), "x": np.zeros((2, 4), np.float32)}, 4),
        ({"scalar": np.float32(1)}, 1),
    ],
)
def test_rows_of_a_sample(feeds: dict[str, np.ndarray], rows: int) -> None:
    assert row_count(Sample("one", feeds)) == rows
