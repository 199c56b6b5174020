"""How sure a measured drop is: a 95 % interval for it, and what a limit makes of that interval.

scipy does the statistics. What is resampled are rows (texts, queries, recordings), because those are what a user drew from
traffic: the tokens of one text are no independent evidence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import counted

LEVEL = 0.95
RESAMPLES = 2000
RESAMPLES_SLOW = 999  # where each one costs two calls of a library
SEED = 0
MIN_ROWS = 20  # rows below which the bootstrap of a correlation or of a macro F1 says nothing
PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"
RowRatio = tuple[np.ndarray, np.ndarray]  # numerator and denominator of each row, float64 [rows]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of the source and of the artifact on the same rows.

    `drop` is how much worse the artifact is, in the metric's own unit, below 0 where it is better; `low` and `high` are the
    ends of its 95 % interval. `source` and `drop` are None where the source was not run, `low` and `high` where there is
    no interval; `method` then says why. `steady`: not one row differs.
    """

    name: str
    source: float | None
    artifact: float
    drop: float | None
    low: float | None
    high: float | None
    rows: int
    method: str
    steady: bool = False

    def verdict(self, limit: float) -> str:
        """PASSED where the whole interval is within the limit, FAILED where all of it is beyond, else UNDECIDED."""
        if self.low is None or self.high is None:
            return UNDECIDED
        if self.low > limit:
            return FAILED
        return PASSED if self.high <= limit else UNDECIDED

    def rows_needed(self, limit: float) -> int | None:
        """About how many rows would decide, if the drop stays what it is; None where no number of them would.

        An interval around rare events shrinks with the number of rows while none was seen, and with its root afterwards.
        """
        if self.drop is None or self.low is None or self.high is None:
            return None
        gap = limit - self.drop
        if abs(gap) < 1e-12:
            return None
        reach = self.high - self.drop if gap > 0 else self.drop - self.low
        wanted = self.rows * max(1.0, (reach / abs(gap)) ** (1 if self.steady else 2))
        step = 10 ** max(0, math.floor(math.log10(wanted)) - 1)  # two digits: it is an estimate
        return math.ceil(wanted / step) * step

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"level": LEVEL}


def scipy_stats() -> Any:
    """scipy.stats, which takes a second to import."""
    from scipy import stats

    return stats


def changed_share(name: str, changed: int, total: int, units: int) -> Metric:
    """The share of decisions that changed, with the exact interval of Clopper and Pearson (Biometrika 26, 1934).

    `units` of the `total` decisions are independent; the counts are scaled to them and rounded outwards.
    """
    share = changed / total
    exact = scipy_stats().binomtest
    scaled = changed * units / total
    low = exact(math.floor(scaled + 1e-9), units).proportion_ci(LEVEL, method="exact").low
    high = exact(math.ceil(scaled - 1e-9), units).proportion_ci(LEVEL, method="exact").high
    over = "" if units == total else f" over {units} independent units"
    return Metric(name, 1.0, 1 - share, share, float(low), float(high), units, f"Clopper-Pearson{over}", not changed)


def mean_cosine(mean: float, spread: float, rows: int) -> Metric:
    """The mean over rows of their cosine to the source, with Student's t interval (Biometrika 6, 1908); none for a single row."""
    name, drop = "mean cosine", 1 - mean
    if rows < 2:
        return Metric(name, 1.0, mean, drop, None, None, rows, "no interval: 1 row, 2 needed")
    reach = float(scipy_stats().t.ppf((1 + LEVEL) / 2, rows - 1)) * spread / math.sqrt(rows)
    return Metric(name, 1.0, mean, drop, max(0.0, drop - reach), drop + reach, rows, "t interval over rows", spread == 0)


def ratio_metric(name: str, source: RowRatio | None, artifact: RowRatio, *, error: bool = False) -> Metric:
    """A metric that is a sum over rows by a sum over rows: a mean, an F1 over all rows, an error rate (`error`: less is better).

    The paired percentile bootstrap, with two rows added, one that the artifact loses altogether and one that it wins: the
    interval of few differences, or of none, would be far too narrow without them (none gives about 3 / rows; Bonett and
    Price, J. Educational and Behavioral Statistics 37, 2012, add the same to a difference of paired proportions).
    """
    rows = len(artifact[0])
    value = float(_divided(*(part.sum() for part in artifact)))
    if source is None:
        return artifact_only_metric(name, value, rows)
    of_source = float(_divided(*(part.sum() for part in source)))
    sign = -1 if error else 1
    drop = value - of_source if error else of_source - value
    parts = [np.concatenate([part, end]) for part, end in zip((*source, *artifact), _ends(source, error), strict=True)]

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        sums = [part[index].sum(axis) for part in parts]
        return sign * (_divided(*sums[:2]) - _divided(*sums[2:]))

    low, high = bootstrap(statistic, rows + 2, RESAMPLES, vectorized=True)
    steady = all(np.array_equal(a, b) for a, b in zip(source, artifact, strict=True))
    return Metric(name, of_source, value, drop, low, high, rows, "paired bootstrap over rows", steady)


def _ends(source: RowRatio, error: bool) -> tuple[np.ndarray, ...]:
    """(source numerators, denominators, artifact numerators, denominators) of the row that is lost and the row that is won."""
    size = float(source[1].mean())
    good, bad = (0.0, size) if error else (size, 0.0)
    size_of_both = np.array([size, size])
    return np.array([good, bad]), size_of_both, np.array([bad, good]), size_of_both


def _divided(top: Any, bottom: Any) -> Any:
    return np.divide(top, np.where(np.asarray(bottom) == 0, 1, bottom))


def all_rows_metric(
    name: str, score: Callable[[int, np.ndarray], float], rows: int, *, paired: bool, steady: bool = False
) -> Metric:
    """A metric of all rows at once: `score(0 for the source or 1 for the artifact, row numbers)`.

    The paired percentile bootstrap over the rows and over two more behind them, number `rows` that the artifact loses and
    `rows` + 1 that it wins (see `quotient`). Under 20 rows there is no interval. Without the source (`paired` is False) only the
    artifact is measured.
    """
    everything = np.arange(rows)
    value = float(score(1, everything))
    if not paired:
        return artifact_only_metric(name, value, rows)
    of_source = float(score(0, everything))
    drop = of_source - value
    if rows < MIN_ROWS:
        return Metric(name, of_source, value, drop, None, None, rows, f"no interval: {counted(rows, 'row')}, {MIN_ROWS} needed")
    low, high = bootstrap(lambda index: score(0, index) - score(1, index), rows + 2, RESAMPLES_SLOW, vectorized=False)
    return Metric(name, of_source, value, drop, low, high, rows, "paired bootstrap over rows", steady)


def artifact_only_metric(name: str, value: float, rows: int) -> Metric:
    """A metric of the artifact alone."""
    return Metric(name, None, float(value), None, None, None, rows, "no interval: the source was not run")


def bootstrap(statistic: Callable[..., Any], rows: int, resamples: int, *, vectorized: bool) -> tuple[float, float]:
    """The percentile interval of `statistic(row numbers)` over rows drawn again and again; with `vectorized` it takes an axis.

    Its ends are values that were drawn, the next ones outwards: interpolated between two that are equal, an end would be
    rounded, and an interval whose end is the estimate itself (few rows, few values) could lie beside it by a last bit.
    """
    found = scipy_stats().bootstrap(
        (np.arange(rows),),
        statistic,
        vectorized=vectorized,
        n_resamples=resamples,
        batch=max(1, 2**21 // rows) if vectorized else None,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    drawn, tail = found.bootstrap_distribution, (1 - LEVEL) / 2
    return float(np.quantile(drawn, tail, method="lower")), float(np.quantile(drawn, 1 - tail, method="higher"))
