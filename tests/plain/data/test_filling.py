"""Batches of which a wanted share is tokens."""

from __future__ import annotations

import numpy as np
import pytest
from fused import encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.core import Dim, InputError
from bertc.data import log_normal_lengths, padded_sample
from bertc.data import synthetic as data

DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, 300)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(8, 64), st.integers(32, 512), st.sampled_from([0.2, 0.4, 0.6, 0.8]), st.integers(0, 9))
def test_the_share_is_met(rows: int, longest: int, fill: float, seed: int) -> None:
    lengths = log_normal_lengths(rows, longest, fill, seed)
    assert lengths.min() >= 1 and lengths.max() <= longest and len(set(lengths.tolist())) > 2
    assert lengths.mean() / longest == pytest.approx(fill, abs=0.06)
    assert np.array_equal(lengths, log_normal_lengths(rows, longest, fill, seed))


def test_masks_are_padded_on_the_right_and_ids_stay() -> None:
    graph = encoder()
    sample = data.sample_at(graph, DIMS, {"batch": 16, "length": 64})
    made = padded_sample(sample, graph, 0.5)
    mask = made.feeds["attention_mask"]
    assert mask.dtype == sample.feeds["attention_mask"].dtype and 0.4 < mask.mean() < 0.6
    assert (np.diff(mask, axis=1) <= 0).all() and mask[:, 0].all()
    assert np.array_equal(made.feeds["input_ids"], sample.feeds["input_ids"]) and "fill 0.5" in made.label


@pytest.mark.parametrize("fill", [0.0, -1.0, 1.5])
def test_what_is_no_share_is_refused(fill: float) -> None:
    graph = encoder()
    with pytest.raises(InputError, match="share"):
        padded_sample(data.sample_at(graph, DIMS, {"batch": 2, "length": 8}), graph, fill)
