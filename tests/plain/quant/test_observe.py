"""What is measured of the tensors that will be quantised, and what must not be quantised for what was seen."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantising import feeds, fitted, layer, padded, rows, seen

from bertc.core.errors import DataError
from bertc.data.unpadded import UnpaddedSample
from bertc.quant.calibration.observe import BLOCK, ROWS, load, merge_parts, observe_sites, save
from bertc.quant.fit import fit_sites


def test_extremes_and_means_are_those_of_all_rows() -> None:
    _, observed = seen(layer(), rows(20), 20)
    x = observed.tensors["x"]
    everything = np.concatenate([row.feeds["x"][0] for row in rows(20)])
    np.testing.assert_array_equal(x.lows, everything.min(axis=0))
    np.testing.assert_array_equal(x.highs, everything.max(axis=0))
    np.testing.assert_allclose(x.means, everything.mean(axis=0), rtol=1e-5)
    assert observed.samples == 20
    assert observed.tokens == len(everything)
    known = {row.tobytes() for row in everything}
    assert len(x.rows) >= 64
    assert all(row.tobytes() in known for row in x.rows)


def test_rows_are_bounded_and_drawn_from_the_whole_of_the_data() -> None:
    count = 1500
    _, observed = seen(layer(), rows(count), count)
    kept = observed.tensors["x"].rows
    assert len(kept) == ROWS
    last = {row.tobytes() for each in list(rows(count))[1000:1020] for row in each.feeds["x"][0]}
    assert any(row.tobytes() in last for row in kept)


def test_memory_does_not_grow_with_the_samples() -> None:
    graph, peaks = layer(), []
    seen(graph, rows(50), 50)
    for count in (256, 1024):
        tracemalloc.start()
        seen(graph, rows(count), count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_padding_never_enters() -> None:
    """The same live tokens behind two kinds of garbage: nothing that is kept may differ."""
    kept = []
    for garbage in (1e6, -3.0):
        _, observed = seen(layer(), iter([padded(seed, 4, garbage) for seed in range(12)]), 12)
        kept.append(observed.tensors["x"])
        assert observed.tokens == 48
    np.testing.assert_array_equal(kept[0].rows, kept[1].rows)
    assert kept[0].largest == kept[1].largest < 10
    np.testing.assert_array_equal(kept[0].means, kept[1].means)


def test_nothing_but_padding_is_an_error() -> None:
    dead = (UnpaddedSample(feeds(seed), f"{seed}", dead=True) for seed in range(3))
    with pytest.raises(DataError, match="every sample is padding only"):
        seen(layer(), dead, 3)


def set_to(value: float):
    def change(x: np.ndarray) -> None:
        x[0, 1, 4] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_the_reason(value: float) -> None:
    graph = layer()
    sites, observed = seen(graph, rows(8, set_to(value)), 8)
    made, refused = fit_sites(graph, sites, observed)
    reads_x = next(site for site in sites.found if site.inputs == ("x",))
    assert refused[reads_x.name] == "x is not finite"
    assert reads_x.name not in made


def test_a_constant_tensor_is_refused() -> None:
    graph = layer()

    def flat(x: np.ndarray) -> None:
        x[...] = 1

    sites, observed = seen(graph, rows(8, flat), 8)
    made, refused = fit_sites(graph, sites, observed)
    reads_x = next(site for site in sites.found if site.inputs == ("x",))
    assert refused[reads_x.name] == "x is constant"
    assert reads_x.name not in made


def test_attention_goes_when_its_projection_cannot_be_quantised() -> None:
    graph = layer()
    sites, observed = seen(graph, rows(8), 8)
    attention = next(site for site in sites.found if site.kind == "attention")
    context = observed.tensors["context"]
    context.nan += 1
    made, refused = fit_sites(graph, sites, observed)
    assert attention.name not in made
    assert refused[attention.name] == "its output's projection is not quantised: context is not finite"
    assert attention.name in fitted(graph)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_parts_merge_into_what_one_pass_gives_bit_for_bit(blocks: list[int]) -> None:
    graph, count = layer(), 4 * BLOCK - 9
    sites, whole = seen(graph, rows(count), count)
    data, edges = list(rows(count)), [0, *sorted(blocks), 4]
    parts = [
        observe_sites(graph, sites, iter(data[first * BLOCK : end * BLOCK]), count, lambda done, total: None, first)
        for first, end in itertools.pairwise(edges)
    ]
    made = merge_parts(parts)
    assert (made.samples, made.tokens) == (count, whole.tokens)
    for name, stats in whole.tensors.items():
        assert made.tensors[name].numbers() == stats.numbers()
        for key, array in stats.arrays().items():
            kept = made.tensors[name].arrays()[key]
            assert key == "sums" or kept.tobytes() == array.tobytes(), (name, key)
        assert made.tensors[name].means.tobytes() == stats.means.tobytes()


def test_what_is_saved_is_what_was_observed(tmp_path: Path) -> None:
    _, whole = seen(layer(), rows(70), 70)
    files = [tmp_path / "a", tmp_path / "b"]
    save(whole, files[0])
    save(load(files[0]), files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    files[1].write_bytes(files[0].read_bytes()[:-5])
    with pytest.raises(DataError, match="is not a file of observed tensors"):
        load(files[1])
