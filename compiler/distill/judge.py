"""What a student lost, by measures on texts that nothing was learned from, each with a 95 % interval.

The interval of a mean over texts is the bootstrap over them; so is that of the rank correlation of similarities, where a text
takes all its pairs with it (pairs are no independent evidence).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from ..core import CheckFailed, DataError, counted
from ..verification import intervals

MOST_RANKED = 1000  # texts whose pairs are ranked: half a million pairs
RESAMPLES = 999
DEPTH = 10  # of MRR@10
DIGITS = 6  # of cosines: copies of a text, or a student that tells nothing apart, differ by fp32 rounding behind them
TIE = 10.0**-DIGITS
BLOCK = 512  # rows of a table of cosines that are held at a time


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
    require_finite(student)
    one, other = unit(student), unit(teacher)
    made = []
    if one.shape[1] == other.shape[1]:
        made.append(mean_of("mean cosine", (one * other).sum(1)))
    near = [_nearest(each) for each in (one, other)]
    kept = (near[0] & near[1]).sum(1) / near[0].sum(1)  # of texts that the student finds equally near one is drawn
    return (*made, mean_of("neighbour kept", kept), spearman(one, other))


def _nearest(rows: np.ndarray) -> np.ndarray:
    """For each text which others are nearest [texts, texts]: one, or several whose cosines are equal."""
    near = np.where(np.eye(len(rows), dtype=bool), -np.inf, rows @ rows.T)
    return np.asarray(near >= near.max(1, keepdims=True) - TIE)


def require_finite(student: np.ndarray) -> None:
    """CheckFailed for NaN or infinity: no order of them is one, and whatever a comparison makes of them is wrong."""
    broken = int((~np.isfinite(student)).any(axis=1).sum())
    if broken:
        raise CheckFailed(
            f"the model gives values that are not finite for {counted(broken, 'text')} of {len(student)}: it is of no use. Train "
            "with a smaller --learning-rate or --precision fp32, or take less out of it"
        )


def of_classes(student: np.ndarray, teacher: np.ndarray) -> tuple[Measure, ...]:
    """The share of texts of the same class, and the mean distance of the probabilities (total variation); for one class, a score,
    the rank correlation."""
    require_finite(student)
    if student.shape[1] == 1:
        return (_spearman_of_scores(student[:, 0], teacher[:, 0]),)
    chances = [softmax(each, axis=1) for each in (student, teacher)]
    same = (student.argmax(1) == teacher.argmax(1)).astype(np.float64)
    apart = 1 - np.abs(chances[0] - chances[1]).sum(1) / 2
    return mean_of("same class", same), mean_of("overlap of probabilities", apart)


def _spearman_of_scores(student: np.ndarray, teacher: np.ndarray) -> Measure:
    rows, name = len(student), "Spearman of scores"
    a, b = (intervals.scipy_stats().rankdata(each) / rows - 0.5 for each in (student, teacher))
    moments = np.stack([np.ones(rows), a, b, a * a, b * b, a * b])

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(_correlation(*(moment[index].sum(axis) for moment in moments)))

    value = float(statistic(np.arange(rows)))
    if rows < intervals.MIN_ROWS:
        return Measure(name, value, None, None, rows)
    return Measure(name, value, *intervals.bootstrap(statistic, rows, RESAMPLES, vectorized=True), rows)


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
        ranks[upper] = intervals.scipy_stats().rankdata((each @ each.T)[upper].round(DIGITS))
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
    """0 where one side gives the same everywhere: that says nothing of the other. Ranks here are -0.5 to 0.5."""
    spreads = (aa - a * a / count) / count, (bb - b * b / count) / count
    constant = (spreads[0] < 1e-12) | (spreads[1] < 1e-12)
    return np.where(constant, 0.0, (ab - a * b / count) / count / np.sqrt(np.where(constant, 1.0, spreads[0] * spreads[1])))


def mean_of(name: str, values: np.ndarray) -> Measure:
    """A mean over texts, with its bootstrap interval."""
    rows = len(values)
    if rows < intervals.MIN_ROWS:
        return Measure(name, float(values.mean()), None, None, rows)

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(values[index].mean(axis))

    low, high = intervals.bootstrap(statistic, rows, RESAMPLES, vectorized=True)
    return Measure(name, float(values.mean()), low, high, rows)


def different(passages: Iterable[str]) -> dict[str, int]:
    """{passage: its number} of passages that several queries may share."""
    return {passage: at for at, passage in enumerate(dict.fromkeys(passages))}


def reciprocal_ranks(queries: np.ndarray, passages: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """1 / rank of each query's own passage among all of them by cosine, 0 beyond rank DEPTH. `own` is the number of its passage;
    default: its own number.

    Of equal cosines the right passage stands last, as bertc verify has it: a model that tells nothing apart finds nothing.
    """
    own = np.arange(len(queries)) if own is None else own
    if len(own) != len(queries) or (len(own) and own.max() >= len(passages)):
        raise DataError(f"{len(queries)} queries and {len(passages)} passages; each query has one")
    asked, given = (unit(each.astype(np.float64)) for each in (queries, passages))
    found = []
    for start in range(0, len(asked), BLOCK):
        scores = (asked[start : start + BLOCK] @ given.T).round(DIGITS)
        right = scores[np.arange(len(scores)), own[start : start + BLOCK]][:, None]
        found.append((~(scores < right)).sum(1))  # NaN, too, is no worse than the right one
    ranks = np.concatenate(found)
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
