"""How far one output of an engine is from its source's, over all samples, in running sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from ..data import Sample

MIN_COSINE_WIDTH = 16  # elements: an output of shorter vectors is not judged by their cosine
BLOCK = 2**20  # elements held in float64 at a time, so that memory does not grow with a vocabulary


# A sigmoid is exact to a part of 1, not of its result. ONNX Runtime's moves by 1.8e-7 between its optimisations on and off: by
# all of it where a detector of text finds nothing, by 2e-4 of a probability of 2.8e-4 in silero-vad. Taken to be exact to
# 2^-23 on each side, which together is 1e-5 of this.
LEAST_OF_ONE = 2.0**-22 / 1e-5


@dataclasses.dataclass(frozen=True)
class OutputResult:
    """One output over all samples; `worst` and `worst_cosine` name the row of `relative` and of `cosine_min`."""

    name: str
    max_abs: float
    relative: float  # max over samples of max|a-b| / max|b|; see OutputSums for samples near zero
    cosine_min: float
    cosine_mean: float
    sqnr_db: float
    vectors: int
    width: int  # elements of a vector
    nonfinite: int  # elements that are NaN or infinite where the source's are not
    uncompared: int  # samples with a dead row that this output has no axis for: checked for finiteness only
    worst: str
    worst_cosine: str
    rows: int = 0  # of which each counts once in the two numbers below, however many vectors it has
    cosine_of_rows: float = 1.0
    cosine_spread: float = 0.0  # standard deviation over rows
    integer: bool = False  # labels, ranks, flags: judged by how many of `vectors` changed, ties (see choices.py) left out
    changed: int = 0
    tied: int = 0
    single: bool = False  # of a sigmoid: no cosine of vectors judges it, but the error on its scale
    peak: float = 0.0  # the largest value of the source

    @property
    def of_vectors(self) -> bool:
        """Whether a cosine says something: of a few numbers it is all noise, of single ones it is nothing they are used for."""
        return self.width >= MIN_COSINE_WIDTH and not self.single


class OutputSums:
    """Running sums of one output.

    An error is relative to the largest value of its sample. Where that is no scale, to more: a score may be near zero in one
    sample, so that of a few numbers the scale is at least what half of the samples reach; of numbers in 0 to 1 it is the largest
    of all samples; and `of_one`, which come out of a sigmoid or a softmax, never less than LEAST_OF_ONE.
    """

    def __init__(self, name: str, *, of_one: bool = False, single: bool = False) -> None:
        self.of_one, self.single = of_one, single
        self.name = name
        self.peak, self.low, self.high = 0.0, math.inf, -math.inf
        self.worst_abs = ""
        self._few: list[tuple[float, float, str]] = []  # error, peak and place of each sample, of an output of a few numbers
        self.max_abs = self.signal = self.noise = self.cosines = 0.0
        self.relative, self.cosine_min = -1.0, math.inf
        self.vectors = self.width = self.nonfinite = self.uncompared = 0
        self.worst = self.worst_cosine = ""
        self._losses = np.zeros(3)  # rows, sum and sum of squares of 1 - mean cosine of a row
        self._row_losses: dict[int, np.ndarray] = {}  # of one sample: vectors, sum of 1 - cosine

    def add(self, expected: np.ndarray, got: np.ndarray, sample: Sample, batch: int) -> None:
        live = [row for row in range(len(expected) if expected.ndim else 1) if row not in sample.dead_rows]
        if sample.dead_rows:
            self._check_dead(expected, got, sample, batch)
        if sample.dead_rows and (expected.ndim == 0 or len(expected) != batch):
            self.uncompared += 1
            return
        peak, worst_abs, worst_row = 0.0, -1.0, live[0] if live else 0
        for row, b, a in _vector_blocks(expected, got, live):
            error = self._add_vectors(b, a, sample, row)
            peak = max(peak, float(np.abs(b).max()))
            if error > worst_abs:
                worst_abs, worst_row = error, row
        if not live:
            return
        for count, lost in self._row_losses.values():
            self._losses += (1, lost / count, (lost / count) ** 2)
        self._row_losses.clear()
        where, relative = sample.where(worst_row), _share(worst_abs, peak)
        if self.width < MIN_COSINE_WIDTH:
            self._few.append((worst_abs, peak, where))
        if relative > self.relative:
            self.relative, self.worst = relative, where
        if not self.worst_abs or worst_abs > self.max_abs:
            self.worst_abs = where
        self.peak = max(self.peak, peak)
        self.max_abs = max(self.max_abs, worst_abs)

    def _check_dead(self, expected: np.ndarray, got: np.ndarray, sample: Sample, batch: int) -> None:
        """Dead rows must be finite where the source's are: some sources (nn.TransformerEncoderLayer) give NaN there."""
        rows = slice(None) if expected.ndim == 0 or len(expected) != batch else list(sample.dead_rows)
        b, a = (np.atleast_1d(array)[rows] for array in (expected, got))
        bad = ~np.isfinite(a) & np.isfinite(b)
        if not bad.any():
            return
        self.nonfinite += int(bad.sum())
        self.max_abs = self.relative = math.inf
        self.worst = self.worst_abs = sample.where(sample.dead_rows[0]) + " (all masked)"

    def _add_vectors(self, b: np.ndarray, a: np.ndarray, sample: Sample, row: int) -> float:
        """Add float64 vectors [n, d]; both are changed. Returns their largest absolute error."""
        alike = np.isinf(b) & (a == b)  # a logit masked with -inf on both sides
        bad = ~alike & ~(np.isfinite(a) & np.isfinite(b))
        a[alike | bad] = b[alike | bad] = 0
        difference = np.abs(a - b)
        cosines = np.where(bad.any(1), -1.0, _cosine(a, b))
        self.signal += float(np.square(b).sum())
        self.noise += math.inf if bad.any() else float(np.square(difference).sum())
        self.nonfinite += int(bad.sum())
        self.vectors += len(b)
        self.width = max(self.width, b.shape[1])
        self.low, self.high = min(self.low, float(b.min())), max(self.high, float(b.max()))
        self.cosines += float(cosines.sum())
        self._row_losses[row] = self._row_losses.get(row, 0) + np.array([len(b), (1 - cosines).sum()])
        if cosines.min() < self.cosine_min:
            self.cosine_min, self.worst_cosine = float(cosines.min()), sample.where(row)
        return math.inf if bad.any() else float(difference.max())

    def least_scale(self) -> float:
        """What an error is relative to at least; 0 where the largest value of a sample is scale enough."""
        if self.low >= 0 and self.high <= 1:
            return max(self.peak, LEAST_OF_ONE) if self.of_one else self.peak
        peaks = sorted(peak for _, peak, _ in self._few) if self.width < MIN_COSINE_WIDTH else []
        return peaks[(len(peaks) - 1) // 2] if peaks else 0.0

    def _relative(self, least: float) -> tuple[float, str]:
        """(the largest relative error, where)."""
        if not least or math.isinf(self.max_abs):
            return self.relative, self.worst
        if least >= self.peak:
            return _share(self.max_abs, least), self.worst_abs
        found = ((_share(error, max(peak, least)), where) for error, peak, where in self._few)
        return max(found, key=lambda each: each[0])

    def result(self, least: float | None = None) -> OutputResult:
        """`least`: the least scale that more samples gave, of which these are a part."""
        relative, worst = self._relative(self.least_scale() if least is None else least)
        rows, total, squares = self._losses
        variance = max(0.0, squares - total * total / rows) / max(1, rows - 1)
        return OutputResult(
            self.name,
            self.max_abs,
            relative,
            self.cosine_min,
            self.cosines / self.vectors,
            _decibels(self.signal, self.noise),
            self.vectors,
            self.width,
            self.nonfinite,
            self.uncompared,
            worst,
            self.worst_cosine,
            int(rows),
            float(1 - total / rows),
            math.sqrt(variance),
            single=self.single,
            peak=self.peak,
        )


def _share(error: float, peak: float) -> float:
    return 0.0 if error == 0 else (error / peak if peak else math.inf)


def _vector_blocks(expected: np.ndarray, got: np.ndarray, rows: list[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(row, source, engine) with float64 vectors [n, last axis], copied; an output of rank 0 or 1 has vectors of one element."""
    last = expected.shape[-1] if expected.ndim > 1 else 1
    step = max(1, BLOCK // last)
    for row in rows:
        b, a = ((array[row] if array.ndim else array).reshape(-1, last) for array in (expected, got))
        for start in range(0, len(b), step):
            yield row, b[start : start + step].astype(np.float64), a[start : start + step].astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows [n, d] -> [n]; 1 for two zero vectors, 0 for one. Scaled: tiny squares vanish."""
    peak_a, peak_b = (np.abs(array).max(1, keepdims=True) for array in (a, b))
    a, b = a / np.where(peak_a > 0, peak_a, 1), b / np.where(peak_b > 0, peak_b, 1)
    norms = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    cosines = (a * b).sum(1) / np.where(norms > 0, norms, 1)
    return np.where((peak_a == 0)[:, 0] & (peak_b == 0)[:, 0], 1.0, np.clip(cosines, -1.0, 1.0))


def _decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): inf without noise, -inf when all is noise."""
    if noise == 0:
        return math.inf
    return -math.inf if signal == 0 or math.isinf(noise) else 10 * math.log10(signal / noise)
