"""A histogram of |x| that widens as it must, and of which two make one: calibration's memory of a tensor.

The bins of a group are 2^exponent wide and start at 0. A value beyond the last bin doubles the width until it fits; then pairs of
bins are added up, which is exact: floor(floor(x / w) / 2) is floor(x / 2w), and scaling a float by a power of two rounds nothing.
So the counts depend on the values alone: not on their order, nor on how many histograms they were spread over before a merge.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

BINS = 8192  # the maximum lies in the upper half, so a bin is at most 1/4096 of it
NARROWEST = -100  # exponent of a group that saw nothing but zeros; smaller magnitudes share its first bin
WIDEST = 128  # a float32 is less than 2^128


@dataclasses.dataclass(frozen=True)
class Histogram:
    """`counts` int64 [groups, bins] and `exponents` int64 [groups]; both are changed in place. One group for a tensor as a whole,
    one a channel where ranges per channel are asked for."""

    counts: np.ndarray
    exponents: np.ndarray

    @staticmethod
    def empty(groups: int = 1, bins: int = BINS) -> Histogram:
        """`bins` is a power of two."""
        assert groups > 0 and bins.bit_count() == 1, (groups, bins)
        return Histogram(np.zeros((groups, bins), np.int64), np.full(groups, NARROWEST, np.int64))

    @property
    def bins(self) -> int:
        return int(self.counts.shape[1])

    @property
    def widths(self) -> np.ndarray:
        """Width of a bin, float64 [groups]."""
        return np.ldexp(1.0, self.exponents)

    def add(self, magnitudes: np.ndarray, largest: float) -> None:
        """Count float32 magnitudes of any shape in the only group; finite, none negative, `largest` is their maximum."""
        assert len(self.exponents) == 1
        exponent = math.frexp(largest)[1] - self.bins.bit_length() + 1
        if exponent > self.exponents[0] and largest:  # 0 is 0 * 2^0 to frexp
            self.widen(np.array([exponent]))
        places = (magnitudes.reshape(-1) * np.float32(2.0 ** -int(self.exponents[0]))).astype(np.intp)
        found = np.bincount(places)
        self.counts[0, : len(found)] += found

    def add_rows(self, magnitudes: np.ndarray, largest: np.ndarray) -> None:
        """Count float32 magnitudes [n, groups] likewise; `largest` [groups]."""
        _, above = np.frexp(largest)  # m < 2^k = bins * 2^(k - log2(bins))
        self.widen(np.where(largest > 0, above.astype(np.int64) - self.bins.bit_length() + 1, NARROWEST))
        places = (magnitudes * np.ldexp(np.float32(1), -self.exponents)).astype(np.intp)
        places += np.arange(len(self.exponents)) * self.bins
        self.counts[...] += np.bincount(places.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)

    def widen(self, exponents: np.ndarray) -> None:
        """Widen each group to an exponent, where that is wider than it is."""
        steps = np.maximum(exponents - self.exponents, 0)
        for step in np.unique(steps[steps > 0]):
            groups = np.flatnonzero(steps == step)
            self.counts[groups] = _collapsed(self.counts[groups], int(step))
        self.exponents[...] += steps

    def merge(self, other: Histogram) -> None:
        """Add what another one counted; `other` stays as it is."""
        assert self.counts.shape == other.counts.shape, (self.counts.shape, other.counts.shape)
        copy = Histogram(other.counts.copy(), other.exponents.copy())
        copy.widen(self.exponents)
        self.widen(copy.exponents)
        self.counts[...] += copy.counts


def _collapsed(counts: np.ndarray, step: int) -> np.ndarray:
    """Counts [groups, bins] in bins that are 2^step wider."""
    groups, bins = counts.shape
    ratio = 1 << min(step, bins.bit_length() - 1)  # beyond that all of them lie in the first bin
    found = np.zeros_like(counts)
    found[:, : bins // ratio] = counts.reshape(groups, -1, ratio).sum(axis=2)
    return found
