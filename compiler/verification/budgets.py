"""Budgets: limits by precision, and what a result violates."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ..core import RecipeError, did_you_mean
from . import intervals as confidence
from .closeness import LEAST_OF_ONE
from .result import ComparisonResult, _plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .closeness import OutputResult
    from .intervals import Metric


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits, each optional: `rel` is the largest relative error, `cosine` and `sqnr_db` the smallest values allowed.

    `agreement` (the smallest share of decisions kept) and `max_drop` (the largest drop of the task's first metric; without
    labels, of the mean cosine of vectors, or the largest share of decisions that change) must be shown by the data: the whole
    95 % interval within the limit passes, the whole of it beyond fails, anything else is undecided, which is no pass. `alarm`
    is a default that needs no data: a share of changed decisions that fails where the whole interval is beyond it, and demands
    nothing of few rows; `collapse` is the same for what `max_drop` is about. Random token ids decide nothing, so none of the
    four is judged on synthetic samples.
    """

    rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    max_drop: float | None = None
    alarm: float | None = None
    collapse: float | None = None
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)  # who set which limit

    def without_decisions(self) -> Budget:
        """What is left of it on synthetic samples."""
        return dataclasses.replace(self, agreement=None, max_drop=None, alarm=None, collapse=None)

    def limits(self) -> dict[str, float | None]:
        """{name: limit, None where there is none}, as manifest and report keep them."""
        return {name: getattr(self, name) for name in LIMITS}

    def summary(self) -> str:
        """`budget: cosine >= 0.9999 (default of fp16), max_drop <= 0.01 (--budget)`."""
        parts = (
            f"{name} {_bound(name)} {limit:.12g} ({self.origins.get(name, 'given')})"
            for name, limit in self.limits().items()
            if limit is not None
        )
        return f"budget: {', '.join(parts) or 'none'}"


def _bound(name: str) -> str:
    return ">=" if name in ("cosine", "sqnr_db", "agreement", "SQNR (dB)") else "<="


LIMITS = tuple(field.name for field in dataclasses.fields(Budget) if field.name != "origins")


# fp32: another order of float32 sums over a few hundred terms moves a result by about 1e-6 of its peak; 1e-5 leaves room for
#   a dozen layers and none for a lower precision (TF32 and fp16 give 1e-3).
# fp16: 11 significant bits round to 5e-4 of a value. Such errors, independent over the elements of a vector, take 1e-7 off its
#   cosine per rounding; 0.9999 allows some hundred roundings, and a broken mask or a lost bias takes far more. One
#   decision in a hundred may be a near-tie; more is alarming.
# bf16: 8 bits, errors 8 times larger, a cosine up to 64 times further from 1 where nothing is kept in fp32; with the softmax and
#   the norms in fp32, 10 times is the allowance.
# int8: what it costs is judged on data (`max_drop`). Random token ids drive activations where no text does (MiniLM: a cosine of
#   0.69 on 512 of them, 0.997 on text), so on synthetic samples only a broken graph is to be found. A drop of 0.05 is a collapse
#   that nobody wants built, whether or not they gave a limit of their own.
# int8-weights: weights alone rounded to 8 bits take 0.0005 off the mean cosine of MiniLM on text, and 0.005 on random token ids.
# fp8, int8-static, int8-dynamic: as int8.
DEFAULT_BUDGETS: Mapping[str, Budget] = {
    "fp32": Budget(rel=1e-5),
    "fp16": Budget(cosine=0.9999, alarm=0.01),
    "bf16": Budget(cosine=0.999, alarm=0.03),
    "int8-weights": Budget(cosine=0.99, alarm=0.05),
    **dict.fromkeys(("fp8", "int8-dynamic", "int8-static", "int8"), Budget(cosine=0.3, collapse=0.05)),
}

# Half precision around int8 activations of the source's own: a number near the border of two integers falls to the other side
# when it is rounded, and is off by a whole step of int8. So int8's rounding is what the result is held to, as where a source's
# int8 is held against float32 (given_check.py).
CARRIED_COSINE = 0.99

# What a limit can be; one beyond would fail, or hold, whatever is compared.
POSSIBLE = {
    "rel": (0.0, math.inf),
    "cosine": (-1.0, 1.0),
    "agreement": (0.0, 1.0),
    "alarm": (0.0, 1.0),
    **dict.fromkeys(("max_drop", "collapse"), (0.0, 2.0)),  # a correlation may fall from 1 to -1
}

DECISION_LIMITS = ("agreement", "max_drop")  # limits that the data must show to be kept


def check_limits(limits: Mapping[str, float]) -> None:
    """RecipeError for a limit that does not exist, is not a number, or is one that nothing measured can have."""
    for name, limit in limits.items():
        if name not in LIMITS:
            raise RecipeError(f"unknown budget {name!r}{did_you_mean(name, LIMITS)}")
        if math.isnan(limit):  # every comparison with it is false: a check that cannot fail
            raise RecipeError(f"the budget's {name} is not a number")
        low, high = POSSIBLE.get(name, (-math.inf, math.inf))
        if not low <= limit <= high:
            ends = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            raise RecipeError(f"the budget's {name} is {limit:g}; it is {ends}")


def budget_for(
    precision: str, limits: Mapping[str, float], overrides: Mapping[str, float] | None = None, *, carried: bool = False
) -> Budget:
    """The default budget of a precision with the limits of a recipe, and over these the ones of `--budget` or `--max-drop`.

    `carried`: the source's own int8 activations are in the graph.
    Raises RecipeError for a limit that does not exist or is not a number.
    """
    default, overrides = DEFAULT_BUDGETS[precision], overrides or {}
    carried = carried and precision in ("fp16", "bf16")
    if carried:
        default = dataclasses.replace(default, cosine=CARRIED_COSINE)
    merged = {**limits, **overrides}
    check_limits(merged)
    origins = dict.fromkeys(LIMITS, f"default of {precision}{' around int8' if carried else ''}")
    origins |= {name: "given to the build" for name, limit in limits.items() if limit != getattr(default, name)}
    origins |= {name: "--max-drop" if name == "max_drop" else "--budget" for name in overrides}
    return dataclasses.replace(default, **merged, origins=origins)


def budget_of_teacher(limits: Mapping[str, float]) -> Budget:
    """The limits that were given for this run and no others: a student is another model, and close to its teacher by what it was
    taught, not by rounding."""
    check_limits(limits)
    return Budget(**limits, origins={name: "--max-drop" if name == "max_drop" else "--budget" for name in limits})


@dataclasses.dataclass(frozen=True)
class Violation:
    """A limit that is broken, and where most; or, `undecided`, one that too few rows decide, `why` says how few.

    `origin` is who set the limit; it is not in the JSON.
    """

    output: str
    metric: str
    found: float
    wanted: float
    worst: str
    undecided: bool = False
    why: str = ""
    origin: str = ""

    def __str__(self) -> str:
        if self.undecided and not math.isfinite(self.found):
            return f"{self.output}: {self.metric}: {self.why}"
        worst = f"; worst: {self.worst}" if self.worst else ""
        origin = f" ({self.origin})" if self.origin else ""
        bound = _bound(self.metric)
        found = f"{self.found:.10g}" if bound == ">=" else f"{self.found:.6g}"  # a cosine is told from 1 by its last digits
        return f"{self.output}: {self.metric} {found}{self.why}, budget {bound} {self.wanted:.12g}{origin}{worst}"

    def to_json(self) -> dict[str, Any]:
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items() if key != "origin"}


def find_violations(result: ComparisonResult, budget: Budget) -> list[Violation]:
    """Every limit of the budget that the result breaks or, where it must be shown, leaves undecided.

    A value that is not finite where the source's is breaks any budget. A decision that could not be compared
    (`Decision.total` of 0) breaks nothing: its note says why.
    """
    broken = [violation for output in result.outputs for violation in _judge_output(output, budget)]
    return broken + list(_judge_decisions(result, budget)) + list(_judge_drop(result, budget))


def _judge_decisions(result: ComparisonResult, budget: Budget) -> Iterator[Violation]:
    if budget.agreement is None and budget.alarm is None:
        return
    for each in result.decisions:
        if not each.total:
            continue
        kept = confidence.changed_share(f"changed: {each.name}", each.total - each.agreed, each.total, each.units)
        if budget.agreement is not None:
            yield from _judge_metric("decision", kept, 1 - budget.agreement, budget.origins.get("agreement", ""), each.worst)
        elif budget.alarm is not None and kept.verdict(budget.alarm) == confidence.FAILED:
            yield from _judge_metric("decision", kept, budget.alarm, budget.origins.get("alarm", ""), each.worst)


def _judge_drop(result: ComparisonResult, budget: Budget) -> Iterator[Violation]:
    """The first metric where there are labels, else the mean cosine of vectors, else every kind of decision."""
    if not result.outputs and budget.max_drop is None:
        why = "nothing was compared with the source: not verified"
        yield Violation("task", "closeness", math.nan, math.nan, "", True, why)
    if budget.max_drop is None:
        for metric in judged_metrics(result):
            if budget.collapse is not None and metric.verdict(budget.collapse) == confidence.FAILED:
                yield from _judge_metric("task", metric, budget.collapse, budget.origins.get("collapse", ""))
        return
    if not result.metrics:
        yield Violation("task", "max_drop", math.nan, budget.max_drop, "", True, why_no_drop(result))
    for metric in judged_metrics(result):
        yield from _judge_metric("task", metric, budget.max_drop, budget.origins.get("max_drop", ""))


def why_no_drop(result: ComparisonResult) -> str:
    """Why no drop can be judged, and what to do."""
    if result.note:
        return f"no drop to judge: {result.note}; name the task, as in --task sequence-classification"
    return "no drop to judge: no decision could be compared"


def judged_metrics(result: ComparisonResult) -> tuple[Metric, ...]:
    """The metrics that `max_drop` limits."""
    first = result.labelled or (result.metrics and result.metrics[0].name == "mean cosine")
    return result.metrics[: 1 if first else None]


def _judge_metric(kind: str, metric: Metric, limit: float, origin: str, worst: str = "") -> Iterator[Violation]:
    """At most one violation: failed or undecided."""
    verdict = metric.verdict(limit)
    if verdict == confidence.PASSED:
        return
    name = f"drop of {metric.name}" if kind == "task" else metric.name
    if metric.drop is None or metric.low is None:
        yield Violation(kind, name, math.nan, limit, worst, True, metric.method, origin)
        return
    interval = f"95 % interval {metric.low:.6g} to {metric.high:.6g}"
    if verdict == confidence.FAILED:
        yield Violation(kind, name, metric.drop, limit, worst, False, f" ({interval})", origin)
        return
    enough = metric.rows_needed(limit)
    more = f"about {enough} needed" if enough else "none are enough for a drop as large as the limit"
    yield Violation(kind, name, metric.drop, limit, worst, True, f" ({interval}; too few rows: {metric.rows}; {more})", origin)


def _judge_output(output: OutputResult, budget: Budget) -> Iterator[Violation]:
    origin = {name: budget.origins.get(name, "") for name in LIMITS}
    if output.integer:
        yield from _judge_choices(output, budget)
        return
    if output.nonfinite:
        yield Violation(output.name, "values not finite", output.nonfinite, 0, output.worst)
    if budget.rel is not None and not output.relative <= budget.rel:  # so written, a NaN breaks the limit
        yield Violation(output.name, "relative error", output.relative, budget.rel, output.worst, origin=origin["rel"])
    if budget.cosine is not None and not output.of_vectors:
        # The angle between two short vectors is all noise where both are near zero (two logits of a token that is neither class),
        # and so is that between two lines of a map of sigmoids in which nothing was found.
        # The same allowance, sqrt(2 - 2 cos) of the length, is held against the largest value of the sample instead.
        allowed = choice_tolerance(budget)
        if not output.relative <= allowed:
            why = f"that of cosine >= {budget.cosine:g}{origin['cosine'] and ', ' + origin['cosine']}"
            yield Violation(output.name, "relative error", output.relative, allowed, output.worst, origin=why)
    elif budget.cosine is not None and not output.cosine_min >= budget.cosine:
        yield Violation(output.name, "cosine", output.cosine_min, budget.cosine, output.worst_cosine, origin=origin["cosine"])
    if budget.sqnr_db is not None and not output.sqnr_db >= budget.sqnr_db:
        yield Violation(output.name, "SQNR (dB)", output.sqnr_db, budget.sqnr_db, output.worst, origin=origin["sqnr_db"])


def unshown(result: ComparisonResult, budget: Budget) -> tuple[str, ...]:
    """Notes of outputs of sigmoids that are smaller everywhere than what the budget lets them differ: any numbers would pass."""
    notes = []
    for output in result.outputs:
        allowed = choice_tolerance(budget) * max(output.peak, LEAST_OF_ONE)
        if output.single and output.peak <= allowed:
            what = f"output {output.name!r} is {output.peak:.2g} at most, less than the {allowed:.2g} that it may differ by"
            notes.append(f"{what}: nothing is shown of it; verify on data that it finds something in (bertc verify --data FILE)")
    return tuple(notes)


def _judge_choices(output: OutputResult, budget: Budget) -> Iterator[Violation]:
    """An integer output is the source's, ties left out; in a smaller type as much of it may change as the cosine allows, and one
    value, which in a few dozen is more than any share."""
    limits_set = [limit for limit in (budget.rel, budget.cosine) if limit is not None]
    if not limits_set:
        return
    allowed = 0 if budget.rel is not None else max(1, int(choice_tolerance(budget) * output.vectors))
    if output.changed > allowed:
        yield Violation(output.name, f"values that changed, of {output.vectors}", output.changed, allowed, output.worst)


def choice_tolerance(budget: Budget) -> float:
    """How far apart two scores are, relative to the largest one, that the budget takes for equal."""
    if budget.rel is not None:
        return budget.rel
    return math.sqrt(2 - 2 * budget.cosine) if budget.cosine is not None else 0.0
