"""Histograms that merge exactly, and ranges from them against brute force on the raw values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.core.errors import DataError
from bertc.quant.calibration import clipping as thresholds
from bertc.quant.calibration import ranges_file as ranges
from bertc.quant.calibration.histogram import NARROWEST, Histogram
from bertc.quant.calibration.statistics import MeasuredTensor, Statistics

BINS = 64
FLOATS = st.floats(0, 2.0**100, width=32) | st.sampled_from([0.0, 1.0, 2.0**-90, 2.0**-140, 63.999996, 64.0])
CHUNKS = st.lists(st.lists(FLOATS, min_size=1, max_size=12), min_size=1, max_size=6)
VALUES = np.random.default_rng(0)


def histogram(*chunks: np.ndarray, bins: int = BINS) -> Histogram:
    made = Histogram.empty(1, bins)
    for chunk in chunks:
        made.add(np.asarray(chunk, np.float32), float(np.max(chunk)))
    return made


def same(one: Histogram, two: Histogram) -> bool:
    return np.array_equal(one.counts, two.counts) and np.array_equal(one.exponents, two.exponents)


@settings(max_examples=200, deadline=None)
@given(CHUNKS, st.randoms(use_true_random=False))
def test_order_and_parts_do_not_matter(chunks: list[list[float]], random) -> None:
    every = [x for chunk in chunks for x in chunk]
    wanted = histogram(np.array(every))
    merged = histogram(np.array(chunks[-1]))
    for chunk in chunks[:-1]:
        merged.merge(histogram(np.array(chunk)))
    random.shuffle(every)
    assert same(merged, wanted)
    assert same(histogram(*(np.array([x]) for x in every)), wanted)


@settings(max_examples=200, deadline=None)
@given(CHUNKS)
def test_counts_are_those_of_the_raw_values(chunks: list[list[float]]) -> None:
    values = np.array([x for chunk in chunks for x in chunk], np.float32).astype(np.float64)
    made = histogram(*(np.array(chunk) for chunk in chunks))
    width = float(made.widths[0])
    wanted = np.bincount(np.floor(values / width).astype(int), minlength=BINS)
    assert np.array_equal(made.counts[0], wanted)
    narrower = width / 2 * BINS > values.max() and made.exponents[0] > NARROWEST
    assert not narrower, "bins half as wide would hold all of it"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=8))
def test_groups_are_histograms_of_their_own(rows: list[list[float]]) -> None:
    together = Histogram.empty(3, BINS)
    for row in rows:
        array = np.array([row], np.float32)
        together.add_rows(array, array.max(axis=0))
    for group, column in enumerate(np.array(rows, np.float32).T):
        alone = histogram(column)
        assert np.array_equal(together.counts[group], alone.counts[0])
        assert together.exponents[group] == alone.exponents[0]


def test_memory_does_not_grow_with_the_range() -> None:
    made = histogram(np.array([1e-30]), np.array([1e30]), np.zeros(5))
    assert made.counts.shape == (1, BINS) and made.counts.sum() == 7


# Statistics of a tensor


def measured(array: np.ndarray, place: MeasuredTensor | None = None) -> Statistics:
    made = Statistics(place or MeasuredTensor("t", "MatMul", dims=("batch", array.shape[-1]), axis=1))
    made.add(array)
    return made


def test_what_is_not_finite_never_enters() -> None:
    clean = VALUES.standard_normal((50, 4)).astype(np.float32)
    dirty = np.concatenate([clean, np.array([[np.nan, np.inf, -np.inf, 0.25]], np.float32)])
    found, wanted = (
        measured(dirty),
        measured(np.concatenate([clean.reshape(-1), [0.25]]).astype(np.float32)[None], MeasuredTensor("t", "M")),
    )
    assert (found.values, found.nan, found.infinite, found.masked) == (201, 1, 2, 0)
    assert (found.low, found.high) == (wanted.low, wanted.high)
    assert same(found.histogram, wanted.histogram)
    assert np.array_equal(found.channels, np.abs(np.where(np.isfinite(dirty), dirty, 0)).max(axis=0))
    assert found.status == "not finite" and found.ranges() == {}


@pytest.mark.parametrize("low", [-1e9, -np.inf, -1e4, -3.4e38])
def test_mask_constants_never_enter(low: float) -> None:
    scores = VALUES.standard_normal((6, 8)).astype(np.float32)
    masked = np.triu(np.ones((6, 8)), 3) > 0
    place = MeasuredTensor("t", "Add", dims=("batch", 8), axis=1, cut=max(low / 2, -1e30), by_channel=True)
    found = measured(scores + np.where(masked, np.float32(low), np.float32(0)), place)
    wanted = measured(scores[~masked][None], MeasuredTensor("t", "M"))
    assert (found.masked, found.values, found.status) == (int(masked.sum()), int((~masked).sum()), "ok")
    assert same(found.histogram, wanted.histogram) and found.low == wanted.low
    assert found.by_channel is not None
    assert np.array_equal(found.by_channel.counts.sum(axis=1), (~masked).sum(axis=0))
    assert found.largest < 10


def test_states() -> None:
    assert measured(np.full((3, 2), 7.5)).status == "constant"
    assert Statistics(MeasuredTensor("t", "M")).status == "unmeasured"
    assert measured(np.full((1, 2), np.inf)).status == "not finite"
    assert measured(np.array([[1.0, 2.0]])).status == "ok"


def test_ranges_follow_what_was_counted_since() -> None:
    found = measured(VALUES.uniform(-1, 1, (50, 4)))
    assert found.ranges()["minmax"] < 1
    found.add(np.full((1, 4), 3.0))
    assert found.ranges()["minmax"] == 3
    assert found.ranges(60.0)["percentile"] < 1 < found.ranges(100.0)["percentile"]


def test_outlier_channels() -> None:
    array = np.ones((5, 16), np.float32)
    array[2, 3], array[4, 9] = -40, 9
    found = measured(array)
    assert found.outliers(10) == {3: 40.0} and found.outliers(5) == {3: 40.0, 9: 9.0}


@pytest.mark.parametrize("by_channel", [False, True])
def test_statistics_read_back_as_they_were(by_channel: bool) -> None:
    array = (VALUES.standard_normal((40, 5)) * 10.0 ** VALUES.integers(-20, 20, 5)).astype(np.float32)
    place = MeasuredTensor("t", "Conv", "a.b", ("batch", 5), 1, -1e30, by_channel)
    made = measured(array, place)
    data = made.to_json()
    found = Statistics.from_json("t", data)
    assert found.place == place and same(found.histogram, made.histogram)
    assert np.array_equal(found.channels, made.channels) and (found.low, found.high) == (made.low, made.high)
    assert found.to_json() == data
    data["values"] += 1
    with pytest.raises(ValueError, match="holds 200 of 201 values"):
        Statistics.from_json("t", data)


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text, said in [
        ("{", "not a file of ranges"),
        ("[]", "wants an object"),
        ("{}", "lacks 'format'"),
        ('{"format": 99, "tensors": {}}', "format 99"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            ranges.read(path)
    path.write_text('{"format": 1, "tensors": {"t": {}}}')
    with pytest.raises(DataError, match="damaged"):
        ranges.read(path)


# Ranges against brute force

SHAPES = {
    "normal": VALUES.standard_normal(20000),
    "outlier": np.append(VALUES.standard_normal(20000), 90.0),
    "heavy": VALUES.standard_t(2.5, 20000),
    "softmax": VALUES.dirichlet(np.full(40, 0.3), 500).reshape(-1),
    "gelu": np.maximum(VALUES.standard_normal(20000), -0.1) * 3,
}


def counted(name: str) -> tuple[np.ndarray, Histogram, np.ndarray]:
    raw = np.abs(SHAPES[name].astype(np.float32))
    return raw.astype(np.float64), histogram(raw, bins=8192), np.array([raw.max()], np.float64)


@pytest.mark.parametrize("name", SHAPES)
def test_minmax_and_percentile(name: str) -> None:
    raw, made, top = counted(name)
    assert thresholds.clipping_magnitudes(made, top, "minmax")[0] == raw.max()
    for percentile in (90.0, 99.0, 99.99, 100.0):
        wanted = np.quantile(raw, percentile / 100, method="inverted_cdf")
        found = thresholds.clipping_magnitudes(made, top, "percentile", percentile)[0]
        assert wanted <= found <= wanted + made.widths[0], (percentile, wanted, found)


def migacz(counts: np.ndarray, levels: int = 128) -> int:
    """The bins kept by the pseudo-code of the slides, one threshold at a time."""
    c = counts.astype(float)
    c[0] = c[1]
    best, kept = math.inf, 0
    for end in range(levels, int(np.flatnonzero(c)[-1]) + 2):
        if c[end - 1] == 0:
            continue
        p = c[:end].copy()
        p[-1] += c[end:].sum()
        q = np.zeros(end)
        for j in range(levels):
            part = slice(end * j // levels, end * (j + 1) // levels)
            filled = c[part] > 0
            q[part] = np.where(filled, c[part].sum() / max(1, filled.sum()), 0)
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
        best, kept = min((best, kept), (divergence, end))
    return kept


@pytest.mark.parametrize("name", SHAPES)
def test_entropy_is_that_of_the_slides(name: str) -> None:
    raw = np.abs(SHAPES[name].astype(np.float32))
    made = histogram(raw, bins=1024)
    found = thresholds.clipping_magnitudes(made, np.array([raw.max()], np.float64), "entropy")[0]
    assert found == min(migacz(made.counts[0]) * made.widths[0], raw.max())


@pytest.mark.parametrize("name", SHAPES)
def test_mse_is_near_the_least_of_the_raw_values(name: str) -> None:
    raw, made, top = counted(name)

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(((raw - np.minimum(np.rint(raw / step), 127) * step) ** 2).mean())

    found = thresholds.clipping_magnitudes(made, top, "mse")[0]
    least = min(error(t) for t in np.linspace(raw.max() / 400, raw.max(), 400))
    assert error(found) <= 1.03 * least
    assert error(found) <= error(raw.max())


def test_an_unknown_method_or_percentile() -> None:
    with pytest.raises(DataError, match="did you mean 'entropy'"):
        thresholds.check_method("entropie", 99.9)
    for percentile in (0.9999, 101.0, math.nan):
        with pytest.raises(DataError, match=r"percentile .* must be above 50"):
            thresholds.check_method("minmax", percentile)
