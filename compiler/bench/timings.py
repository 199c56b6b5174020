"""Times of contenders at several shapes: percentiles, spread, throughput, ratios with their intervals; table, CSV, plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Shape
from ..verification import intervals as confidence

MIN_CALLS = {"p90": 10, "p99": 100}  # calls below which a percentile is the slowest call under another name


@dataclasses.dataclass(frozen=True)
class Timing:
    """The calls of one contender at one shape: float64 [rounds], in seconds, in the order they were made."""

    contender: str
    shape: Shape
    seconds: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def percentile(self, name: str) -> float | None:
        """Seconds of `p50`, `p90` or `p99`; None where there are too few calls to tell."""
        if len(self.seconds) < MIN_CALLS.get(name, 1):
            return None
        return float(np.percentile(self.seconds, float(name[1:])))

    def to_json(self) -> dict[str, Any]:
        low, high = np.percentile(self.seconds, [25, 75])
        return {
            "contender": self.contender,
            "shape": dict(self.shape.sizes),
            "weight": self.shape.weight,
            "calls": len(self.seconds),
            **{f"{name}_ms": _ms(self.percentile(name)) for name in ("p50", "p90", "p99")},
            "iqr_ms": _ms(float(high - low)),
            "min_ms": _ms(float(self.seconds.min())),
            "samples_per_s": self.shape.rows / self.median,
            # With a third dimension (a decoder's cache) the product of the sizes counts nothing that anyone asks for.
            "tokens_per_s": self.shape.tokens / self.median if len(self.shape.sizes) == 2 else None,
        }


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median time of `contender` over that of the artifact in the same rounds: above 1 the artifact is faster. 95 % interval."""

    contender: str
    shape: str
    ratio: float
    low: float
    high: float


def time_ratio(subject: Timing, other: Timing) -> Ratio:
    """The paired percentile bootstrap over rounds: a round's calls stand next to each other and share what disturbs them."""
    value = other.median / subject.median
    low, high = _interval([(subject.seconds, other.seconds)], [1.0])
    return Ratio(other.contender, str(subject.shape), value, low, high)


def traffic_ratio(subject: Sequence[Timing], other: Sequence[Timing]) -> Ratio:
    """The same for the traffic as a whole: medians of the shapes, each weighted by its requests."""
    weights = [t.shape.weight for t in subject]
    value = _sum(other, weights) / _sum(subject, weights)
    low, high = _interval([(a.seconds, b.seconds) for a, b in zip(subject, other, strict=True)], weights)
    return Ratio(other[0].contender, "traffic", value, low, high)


def _sum(timings: Sequence[Timing], weights: Sequence[float]) -> float:
    return sum(w * t.median for t, w in zip(timings, weights, strict=True))


def _interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float]) -> tuple[float, float]:
    """Rounds are drawn again, the same ones for both sides and all shapes."""
    rounds = len(pairs[0][0])
    if rounds < 2:
        return math.nan, math.nan

    def statistic(index: np.ndarray, axis: int = -1) -> np.ndarray:
        ours, theirs = (sum(w * np.median(p[i][index], axis) for p, w in zip(pairs, weights, strict=True)) for i in (0, 1))
        return np.asarray(theirs / ours)

    return confidence.bootstrap(statistic, rounds, confidence.RESAMPLES, vectorized=True)


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """What a run measured. The first contender is the artifact under test. `conditions` say what the numbers hold for."""

    artifact: str
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    descriptions: Mapping[str, str]
    skipped: Mapping[str, str]
    agreement: Mapping[str, float]
    conditions: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact,
            "executed": True,
            "contenders": dict(self.descriptions),
            "skipped": dict(self.skipped),
            "largest_relative_difference": dict(self.agreement),
            "conditions": dict(self.conditions),
            "timings": [t.to_json() for t in self.timings],
            "ratios": [dataclasses.asdict(r) | {"low": _plain(r.low), "high": _plain(r.high)} for r in self.ratios],
            "notes": list(self.notes),
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _no_formula(name: str) -> str:
    """A name that a spreadsheet would compute (`=cmd|...`), with the apostrophe before it that makes it a text there."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def to_csv(result: BenchResult) -> str:
    """A row for each contender at each shape, the dims as columns, and the ratio of times with its interval."""
    ratios = {(r.shape, r.contender): r for r in result.ratios}
    rows = []
    for timing in result.timings:
        found = ratios.get((str(timing.shape), timing.contender))
        facts = timing.to_json()
        sides = (found.ratio, found.low, found.high) if found else ("", "", "")
        compared = dict(zip(("ratio", "ratio_low", "ratio_high"), sides, strict=True))
        rows.append({"contender": _no_formula(facts.pop("contender")), **facts.pop("shape"), **facts, **compared})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
