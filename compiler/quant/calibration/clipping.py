"""Ranges for symmetric INT8 from a histogram of |x|: where to clip, by four methods, all from one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...core import DataError, did_you_mean
from .histogram import Histogram

LEVELS = 128  # 0 to 127: what INT8 holds of magnitudes
CANDIDATES = 2048  # thresholds that KL is computed at, as many as Migacz tries
GRID = 256  # thresholds that the squared error is computed at
PERCENTILE = 99.99


def minmax(counts: np.ndarray, width: float, largest: float, percentile: float = PERCENTILE) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return largest


def percentile(counts: np.ndarray, width: float, largest: float, percentile: float = PERCENTILE) -> float:
    """The upper edge of the bin that holds this percentile of the magnitudes (zeros count), never above the largest."""
    total = counts.cumsum()
    at = int(np.searchsorted(total, total[-1] * (percentile / 100)))
    return min((at + 1) * width, largest)


def entropy(counts: np.ndarray, width: float, largest: float, percentile: float = PERCENTILE) -> float:
    """The threshold whose 128 levels lose the least information, by Kullback-Leibler divergence.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 26 to 40: P is the histogram below the threshold with what lies
    above added to its last bin; Q is the histogram below, summed to 128 levels and spread evenly over the bins that are not
    empty. The first bin counts as the second does: zero is exact at any scale, and it would decide alone (as in NVIDIA's
    pytorch-quantization). A threshold whose last bin is empty has Q = 0 where P is not, an infinite divergence: none is tried.
    Over levels j, sum(P log Q) = sum over j of P_j log Q_j, so sums up to each bin are all that a threshold needs.
    """
    c = counts.astype(np.float64)
    c[0] = c[1]
    ends = _candidates(c)
    if not len(ends):
        return largest
    sums, filled, own = (_sums(x) for x in (c, c > 0, c * np.log(np.where(c > 0, c, 1.0))))
    edges = (ends[:, None] * np.arange(LEVELS + 1)) // LEVELS
    level, occupied = np.diff(sums[edges], axis=1), np.diff(filled[edges], axis=1)
    inside, total = sums[ends], sums[-1]
    last = c[ends - 1]
    clipped = last + (total - inside)
    # sum(P log P), unnormalised: the last bin gives way to itself with what was clipped
    of_p = own[ends] - last * np.log(last) + clipped * np.log(clipped)
    spread = np.log(np.where(level > 0, level, 1.0)) - np.log(np.maximum(occupied, 1.0))
    of_q = (level * spread).sum(axis=1) + (clipped - last) * spread[:, -1]
    divergence = (of_p - of_q) / total - np.log(total) + np.log(inside)
    return min(float(ends[int(divergence.argmin())]) * width, largest)


def _candidates(c: np.ndarray) -> np.ndarray:
    """Thresholds to try, in bins: from 128 up, with something in their last bin; the one that clips nothing is among them."""
    top = int(np.flatnonzero(c)[-1]) + 1 if c.any() else 0
    ends = np.append(np.arange(LEVELS, top, max(1, len(c) // CANDIDATES)), top)
    return ends[(c[ends - 1] > 0) & (ends >= LEVELS)] if top else ends[:0]


def _sums(x: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... elements."""
    return np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])


def mse(counts: np.ndarray, width: float, largest: float, percentile: float = PERCENTILE) -> float:
    """The threshold of the least squared error of clipping and rounding to 127 steps, every value at the middle of its bin.

    Tried are 256 thresholds evenly spaced up to the largest magnitude; the least has steps as wide as a bin.
    """
    places = np.flatnonzero(counts)
    if not len(places) or not largest:
        return largest
    x, weight = (places + 0.5) * width, counts[places].astype(np.float64)
    tried = np.unique(np.maximum(np.linspace(largest / GRID, largest, GRID), min((LEVELS - 1) * width, largest)))
    step = tried / (LEVELS - 1)
    errors = [float(weight @ (x - np.minimum(np.rint(x / s), LEVELS - 1) * s) ** 2) for s in step]
    return float(tried[int(np.argmin(errors))])


METHODS: Mapping[str, Callable[..., float]] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}


def check_method(method: str, percentile: float) -> None:
    """Raises DataError for an unknown method or a percentile out of range."""
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    if not 50 < percentile <= 100:  # false for NaN too
        raise DataError(f"percentile {percentile} must be above 50 and at most 100, as in 99.99")


def clipping_magnitudes(histogram: Histogram, largest: np.ndarray, method: str, percentile: float = PERCENTILE) -> np.ndarray:
    """The clipping magnitude of each group, float64 [groups], by one of METHODS. `largest` are the magnitudes' maxima."""
    rows: Any = zip(histogram.counts, histogram.widths, largest, strict=True)
    return np.array([METHODS[method](c, float(w), float(m), percentile) for c, w, m in rows])
