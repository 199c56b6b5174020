"""What a student lost, by measures on texts that nothing was learned from, each with a 95 % interval.

The interval of a mean over texts is the bootstrap over them; so is that of the rank correlation of similarities, where a text
takes all its pairs with it (pairs are no independent evidence).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from ..core import DataError
from ..verification import intervals

MOST_RANKED = 1000  # texts whose pairs are ranked: half a million pairs
RESAMPLES = 999
DEPTH = 10  # of MRR@10


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of a student against its teacher, with its interval (None where there are too few texts for one)."""

    name: str
    value: float
    low: float | None
    high: float | None
    rows: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ends = "" if self.low is None or self.high is None else f" ({self.low:.4f} to {self.high:.4f})"
        return f"{self.name} {self.value:.4f}{ends}"


def of_vectors(student: np.ndarray, teacher: np.ndarray) -> tuple[Measure, ...]:
    """mean cosine; neighbour kept: the share of texts whose nearest other text is the teacher's; Spearman of all similarities."""
    one, other = unit(student), unit(teacher)
    made = []
    if one.shape[1] == other.shape[1]:
        made.append(mean_of("mean cosine", (one * other).sum(1)))
    near = [np.where(np.eye(len(each), dtype=bool), -np.inf, each @ each.T) for each in (one, other)]
    kept = near[0].argmax(1) == near[1].argmax(1)
    return (*made, mean_of("neighbour kept", kept.astype(np.float64)), spearman(one, other))


def of_classes(student: np.ndarray, teacher: np.ndarray) -> tuple[Measure, ...]:
    """The share of texts of the same class, and the mean distance of the probabilities (total variation); for one class, a score,
    the rank correlation."""
    if student.shape[1] == 1:
        value = float(intervals.scipy_stats().spearmanr(student[:, 0], teacher[:, 0]).statistic)
        return (Measure("Spearman of scores", value, None, None, len(student)),)
    chances = [softmax(each, axis=1) for each in (student, teacher)]
    same = (student.argmax(1) == teacher.argmax(1)).astype(np.float64)
    apart = 1 - np.abs(chances[0] - chances[1]).sum(1) / 2
    return mean_of("same class", same), mean_of("overlap of probabilities", apart)


def spearman(one: np.ndarray, other: np.ndarray) -> Measure:
    """The rank correlation of the similarities of all pairs of texts, in both spaces.

    Ranks are those of all pairs; a resample of texts weighs each pair by how often both were drawn.
    """
    rows = min(MOST_RANKED, len(one))
    if rows < 3:
        return Measure("Spearman", float("nan"), None, None, rows)
    upper = np.triu_indices(rows, 1)
    tables = []
    for each in (one[:rows], other[:rows]):
        ranks = np.zeros((rows, rows))
        ranks[upper] = intervals.scipy_stats().rankdata((each @ each.T)[upper])
        ranks = ranks / len(upper[0]) - 0.5
        ranks[np.tril_indices(rows)] = 0
        tables.append(ranks)
    pairs = np.triu(np.ones((rows, rows)), 1)
    a, b = tables
    moments = [pairs, a, b, a * a, b * b, a * b]

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        index = np.atleast_2d(index)
        counts = np.stack([np.bincount(row, minlength=rows) for row in index]).astype(np.float64)
        sums = [((counts @ moment) * counts).sum(1) for moment in moments]
        return _correlation(*sums)

    value = float(statistic(np.arange(rows))[0])
    if rows < intervals.MIN_ROWS:
        return Measure("Spearman", value, None, None, rows)
    low, high = intervals.bootstrap(statistic, rows, RESAMPLES, vectorized=True)
    return Measure("Spearman", value, low, high, rows)


def _correlation(count: Any, a: Any, b: Any, aa: Any, bb: Any, ab: Any) -> Any:
    spread = np.sqrt(np.maximum(aa - a * a / count, 0) * np.maximum(bb - b * b / count, 0))
    return (ab - a * b / count) / np.maximum(spread, 1e-300)


def mean_of(name: str, values: np.ndarray) -> Measure:
    """A mean over texts, with its bootstrap interval."""
    rows = len(values)
    if rows < intervals.MIN_ROWS:
        return Measure(name, float(values.mean()), None, None, rows)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(values[index].mean(axis))

    low, high = intervals.bootstrap(statistic, rows, RESAMPLES, vectorized=True)
    return Measure(name, float(values.mean()), low, high, rows)


def reciprocal_ranks(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """1 / rank of each query's own passage among all of them by cosine, 0 beyond rank DEPTH."""
    if len(queries) != len(passages):
        raise DataError(f"{len(queries)} queries and {len(passages)} passages; each query has one")
    scores = unit(queries) @ unit(passages).T
    own = np.diag(scores)[:, None]
    ranks = 1 + (scores > own).sum(1)
    return np.where(ranks <= DEPTH, 1.0 / ranks, 0.0)


def drop_of(name: str, student: np.ndarray, teacher: np.ndarray) -> intervals.Metric:
    """How much a mean over rows (a reciprocal rank, a right class) falls from teacher to student, with a paired interval."""
    ones = np.ones(len(student))
    return intervals.ratio_metric(name, (teacher, ones), (student, ones))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, those of length 0 as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def shown(measures: Sequence[Measure]) -> str:
    return ", ".join(map(str, measures))
