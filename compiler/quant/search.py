"""Search for the layers that an accuracy budget leaves in float: each is measured in int8 alone, then the worst leave int8.

Sites leave int8 in the order of the error they cause alone per FLOP they take, until the budget holds; the steps are the
trade-off curve. An attention goes with the projection behind it (see sites.Site.needs). Attentions go early: few of the FLOPs,
much of the error; each costs one more kernel a layer (10 for 9), which is not counted here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Advance, Feeds, Outputs, VerifyFailed
from ..data import Labels, Layout, Sample, row_count
from ..verification import Comparison, ComparisonResult, Metric, budgets
from .fit import Fitted
from .gated import Gated

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.0)  # of the GEMM FLOPs: points of the curve
MIN_KEPT = 0.95  # of the decisions beside the metric in question: nearest neighbours, where that is the cosine
ROWS_ALONE = 32  # rows on which each site is measured alone: only their order is used
NOWHERE = "no share of int8 keeps the budget"
ROWS_OF_CURVE = 96  # rows for the points of the curve; the chosen one is measured on all


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One step of the curve: the share of the GEMM FLOPs in int8, and what that does to the metric (in its own unit, with the
    95 % interval of the drop), to the closeness of the outputs, and to decisions."""

    share: float
    left_in_float: tuple[str, ...]
    measure: Metric
    result: ComparisonResult

    def to_json(self) -> dict[str, Any]:
        of = self.measure
        low, high = (None if end is None else _rounded((of.source or 0.0) - end) for end in (of.high, of.low))
        drop = None if of.drop is None else _rounded(of.drop)
        kept = {m.name: _rounded(m.artifact) for m in self.result.metrics}
        return {"share": round(self.share, 6), "value": _rounded(of.artifact), "low": low, "high": high, "drop": drop,
                "kept_in_fp": list(self.left_in_float), "measures": kept}  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(value), 9)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The sites that stay int8 (`chosen`), the curve of the search, the index `at` of its chosen point, and why that one.

    All points of the curve are measured on the same rows, the first of those that judge; `confirmed` is the chosen one on all.
    `sensitivity`: squared error of the outputs, relative to them, with one site alone in int8.
    """

    chosen: tuple[str, ...]
    curve: tuple[CurvePoint, ...]
    at: int
    sensitivity: Mapping[str, float]
    why: str
    confirmed: CurvePoint | None = None

    @property
    def point(self) -> CurvePoint:
        """The chosen point on as many rows as it was measured on."""
        return self.confirmed or self.curve[self.at]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Runs samples with some sites quantised and compares with float32; the float32 answers are computed once.

    `layout`: which axes count rows, the first ones where it is not given.
    """

    gated: Gated
    samples: Sequence[Sample]
    truth: Sequence[Outputs]
    task: str
    labels: Labels | None = None
    layout: Layout | None = None

    @staticmethod
    def over(gated: Gated, samples: Sequence[Sample], task: str, labels: Labels | None, layout: Layout | None = None) -> Judge:
        return Judge(gated, samples, [gated.run(sample.feeds, ()) for sample in samples], task, labels, layout)

    def __call__(self, quantised: Sequence[str], samples: int | None = None) -> ComparisonResult:
        return self.compare(lambda feeds: self.gated.run(feeds, quantised), samples)

    def compare(self, answer: Callable[[Feeds], Outputs], samples: int | None = None) -> ComparisonResult:
        """Anything that answers feeds against float32, on the first samples or on all."""
        blank = self.labels.blank if self.labels else 0
        comparison = Comparison(self.task, labels=self.labels, intervals=True, blank=blank, layout=self.layout)
        for sample, expected in list(zip(self.samples, self.truth, strict=True))[:samples]:
            comparison.add(expected, answer(sample.feeds), sample)
        return comparison.result()


def search_int8(
    judge: Judge, fitted: Mapping[str, Fitted], total: float, max_drop: float | None, advance: Advance
) -> SearchResult:
    """The most int8 that the budget allows. `total`: FLOPs of all GEMMs of the graph.

    Without `max_drop` every site stays, and one point is measured. Raises VerifyFailed where the data has nothing to judge by.
    """
    shares = {name: each.site.flops / total for name, each in fitted.items()}
    if max_drop is None:
        point = measure_point(judge, tuple(fitted), (), sum(shares.values()))
        return SearchResult(tuple(fitted), (point,), 0, {}, "all GEMMs that can be int8 are (no --max-drop)")
    rows = sum(_row_counts(judge))
    nothing = measure_point(judge, (), tuple(fitted), 0.0, _first(judge, ROWS_OF_CURVE))
    if not within_limit(nothing, max_drop, rows):
        return SearchResult((), (nothing,), 0, {}, _nowhere(nothing, max_drop, rows))
    few = _first(judge, ROWS_ALONE)
    alone = {}
    for done, name in enumerate(fitted):
        alone[name] = _noise(judge((name,), few))
        advance(done, len(fitted) + len(SHARES))
    order = _order(fitted, alone)
    curve = _curve(judge, order, shares, len(fitted), advance)
    at = next((index for index, point in enumerate(curve) if within_limit(point, max_drop, rows)), len(curve) - 1)
    if at:
        curve, at = _refined(judge, order, shares, curve, at, max_drop)
    at, found = _confirmed(judge, order, curve, at, max_drop)
    if found is None:
        return SearchResult((), tuple(curve), min(at, len(curve) - 1), alone, NOWHERE)
    why = f"largest int8 share with a drop of {found.measure.name} within {max_drop:g}"
    why += f" and {100 * MIN_KEPT:g} % of the decisions kept" if _beside(found.result) else ""
    return SearchResult(tuple(n for n in fitted if n not in found.left_in_float), tuple(curve), at, alone, why, found)


def _confirmed(
    judge: Judge, order: Sequence[tuple[str, ...]], curve: Sequence[CurvePoint], at: int, max_drop: float
) -> tuple[int, CurvePoint | None]:
    """(the index of the first point from `at` on that holds on all rows, that point measured on them); None where none does."""
    for index, found in enumerate(curve[at:], start=at):
        stay = tuple(name for step in order for name in step if name not in found.left_in_float)
        if not stay:
            return index, None
        point = measure_point(judge, stay, found.left_in_float, found.share)
        if within_limit(point, max_drop):
            return index, point
    return len(curve), None


def measure_point(
    judge: Judge, quantised: Sequence[str], back: Sequence[str], share: float, samples: int | None = None
) -> CurvePoint:
    return point_of(judge(quantised, samples), back, share)


def point_of(result: ComparisonResult, back: Sequence[str] = (), share: float = 1.0) -> CurvePoint:
    """The point of a comparison, by the metric that its budget decides on. Raises VerifyFailed without one."""
    found = budgets.judged_metrics(result)
    if not found:
        raise VerifyFailed(budgets.why_no_drop(result))
    worst = max(found, key=lambda each: math.inf if each.high is None else each.high)  # the one that the budget hangs on
    return CurvePoint(share, tuple(back), worst, result)


def _nowhere(nothing: CurvePoint, max_drop: float, rows: int) -> str:
    """Why no int8 can pass: the rows cannot show the limit even of the graph that is float32 everywhere."""
    needed = nothing.measure.rows_needed(max_drop)
    more = f": about {needed} needed, and as many more to calibrate" if needed else ""
    return (
        f"{rows} held-out rows are too few to show a drop of {nothing.measure.name} within {max_drop:g}, even without int8{more}"
    )


def within_limit(point: CurvePoint, max_drop: float, rows: int | None = None) -> bool:
    """Whether the whole interval is within the limit, and as many decisions are kept as beside it must be.

    `rows`: all there are, where the point was measured on the first of them. What more of them would probably show counts then,
    and of decisions, which are few and whose count is rough, only a share that is shown to be too small. On all rows it must be a
    standard error above the minimum: of many points the search takes the first that passes, and among more texts than these
    a neighbour is lost more easily.
    """
    of, few = point.measure, rows is not None
    if of.high is None or of.drop is None:
        return False
    if of.high > max_drop and not (few and of.drop <= max_drop and 0 < (of.rows_needed(max_drop) or 0) <= (rows or 0)):
        return False
    return all((1 - (each.low or 0.0) if few else _probably(each)) >= MIN_KEPT for each in _beside(point.result))


def _probably(measure: Metric) -> float:
    """A share, less its standard error."""
    return measure.artifact - math.sqrt(measure.artifact * (1 - measure.artifact) / max(1, measure.rows))


def _beside(result: ComparisonResult) -> list[Metric]:
    """Decisions that are not what `max_drop` is about."""
    return [m for m in result.metrics if m not in budgets.judged_metrics(result) and m.name.startswith("kept:")]


def _noise(result: ComparisonResult) -> float:
    """Squared error of all outputs, relative to them."""
    return float(sum(10 ** (-output.sqnr_db / 10) for output in result.outputs))


def _order(fitted: Mapping[str, Fitted], alone: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The order in which sites leave int8, each with the attention that cannot stay without it."""
    users = {each.site.needs: name for name, each in fitted.items() if each.site.needs}
    ranked = sorted(fitted, key=lambda name: -alone[name] / fitted[name].site.flops)
    order: list[tuple[str, ...]] = []
    gone: set[str] = set()
    for name in ranked:
        step = tuple(n for n in (name, users.get(name)) if n and n not in gone)
        if step:
            order.append(step)
            gone.update(step)
    return order


def _curve(
    judge: Judge, order: Sequence[tuple[str, ...]], shares: Mapping[str, float], count: int, advance: Advance
) -> list[CurvePoint]:
    """The first prefix of the order at or below each share, measured."""
    points: list[CurvePoint] = []
    taken = -1
    for done, share in enumerate(SHARES):
        prefix = next((k for k in range(len(order) + 1) if _share(order[k:], shares) <= share + 1e-9), len(order))
        if prefix > taken:
            points.append(_point(judge, order, prefix, shares))
            taken = prefix
        advance(count + done, count + len(SHARES))
    return points


def _share(steps: Sequence[tuple[str, ...]], shares: Mapping[str, float]) -> float:
    return sum(shares[name] for step in steps for name in step)


def _point(judge: Judge, order: Sequence[tuple[str, ...]], prefix: int, shares: Mapping[str, float]) -> CurvePoint:
    back = tuple(name for step in order[:prefix] for name in step)
    stay = tuple(name for step in order[prefix:] for name in step)
    return measure_point(judge, stay, back, _share(order[prefix:], shares), _first(judge, ROWS_OF_CURVE))


def _refined(
    judge: Judge, order: Sequence[tuple[str, ...]], shares: Mapping[str, float], curve: list[CurvePoint], at: int, max_drop: float
) -> tuple[list[CurvePoint], int]:
    """Halve the steps between the last point that does not hold and the first that does."""
    sizes = [len(step) for step in order]
    steps = {int(n): k for k, n in enumerate(np.cumsum([0, *sizes]))}
    low, high = steps[len(curve[at - 1].left_in_float)], steps[len(curve[at].left_in_float)]
    while high - low > 1:
        middle = (low + high) // 2
        point = _point(judge, order, middle, shares)
        fits = within_limit(point, max_drop, sum(_row_counts(judge)))
        curve = sorted([*curve, point], key=lambda each: -each.share)
        low, high = (low, middle) if fits else (middle, high)
    chosen = next(i for i, point in enumerate(curve) if steps[len(point.left_in_float)] == high)
    return curve, chosen


def _first(judge: Judge, rows: int) -> int:
    """How many samples have that many rows; all, where they are fewer."""
    return 1 + int(np.searchsorted(np.cumsum(_row_counts(judge)), rows))


def _row_counts(judge: Judge) -> list[int]:
    return [row_count(sample, judge.layout) for sample in judge.samples]
