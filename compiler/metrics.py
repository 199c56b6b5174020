"""How far an engine's outputs are from its source's, and whether that is within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .data import Sample, masks
from .decisions import Decision, for_task
from .errors import DataError, VerifyFailed

NARROW = 16  # elements: an output of shorter vectors is not judged by their cosine
BLOCK = 2**20  # elements held in float64 at a time, so that memory does not grow with a vocabulary


@dataclasses.dataclass(frozen=True)
class OutputResult:
    """One output over all samples; `worst` and `worst_cosine` name the row of `relative` and of `cosine_min`."""

    name: str
    max_abs: float
    relative: float  # max over samples of max|a-b| / max|b|
    cosine_min: float
    cosine_mean: float
    sqnr_db: float
    vectors: int
    width: int  # elements of a vector
    nonfinite: int  # elements that are NaN or infinite where the source's are not
    uncompared: int  # samples with a dead row that this output has no axis for: checked for finiteness only
    worst: str
    worst_cosine: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What a Comparison measured. `note` says so when the task has no decision."""

    task: str
    outputs: tuple[OutputResult, ...]
    decisions: tuple[Decision, ...]
    samples: int
    rows: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; infinities as "inf" and "-inf", which JSON has no number for."""
        measured = {out.name: {key: _plain(value) for key, value in dataclasses.asdict(out).items()} for out in self.outputs}
        return {
            "task": self.task,
            "samples": self.samples,
            "rows": self.rows,
            "outputs": measured,
            "decisions": [decision.to_json() for decision in self.decisions],
            "note": self.note,
        }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Comparison:
    """Feed it batch by batch and ask for the result at the end; memory stays flat but for sentence vectors and single logits.

    `task` chooses the decisions to compare, `blank` is the CTC blank id.
    """

    def __init__(self, task: str = "features", *, blank: int = 0) -> None:
        self.task = task
        self._outputs: dict[str, _Output] = {}
        self._judges = for_task(task, blank)
        self._samples = self._rows = 0

    def add(self, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], sample: Sample) -> None:
        """Compare one sample. Raises VerifyFailed for missing, unknown or differently shaped outputs and for NaN from the source,
        DataError for nothing to compare."""
        expected = {name: np.asarray(array) for name, array in expected.items()}
        got = {name: np.asarray(array) for name, array in got.items()}
        self._check(expected, got, sample)
        batch = _batch(sample)
        for name, array in expected.items():
            self._outputs.setdefault(name, _Output(name)).add(array, got[name], sample, batch)
        for judge in self._judges:
            judge.add(expected, got, sample)
        self._samples += 1
        self._rows += batch - len(sample.dead_rows)

    def _check(self, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], sample: Sample) -> None:
        if not expected:
            raise DataError(f"the source has no outputs for {sample.label}: nothing to compare with")
        if set(expected) != set(got) or (self._outputs and set(expected) != set(self._outputs)):
            known = ", ".join(self._outputs or expected)
            gave = f"the source gave {', '.join(expected)}, the engine {', '.join(got) or 'nothing'}"
            raise VerifyFailed(f"{sample.label}: outputs {known} wanted; {gave}")
        for name, array in expected.items():
            if array.shape != got[name].shape:
                raise VerifyFailed(f"{sample.label}: output {name!r} has shape {got[name].shape}, in the source {array.shape}")
            if not array.size:
                raise DataError(f"{sample.label}: output {name!r} of shape {list(array.shape)} is empty: nothing to compare")
            if np.isnan(_live(array, sample, _batch(sample))).any():
                raise VerifyFailed(
                    f"{sample.label}: output {name!r} of the source itself has NaN, so nothing can be compared with it; "
                    "look for broken weights, or for an input the model does not take"
                )

    def result(self) -> Result:
        """Raises DataError when no sample, or no live row, was compared: that would be a check that cannot fail."""
        if not self._samples:
            raise DataError("no samples were compared; give data with one row or more")
        for output in self._outputs.values():
            if not output.vectors:
                raise DataError(f"no row of output {output.name!r} was compared: all rows are masked; give other data")
        decided = tuple(decision for judge in self._judges if (decision := judge.result()) is not None)
        note = "" if self._judges else f"no decision for the task {self.task!r}: numbers only"
        return Result(self.task, tuple(o.result() for o in self._outputs.values()), decided, self._samples, self._rows, note)


def _batch(sample: Sample) -> int:
    """Rows of a sample: axis 0 of its masks, else of its first input of rank 1 or more."""
    ranked = [array for array in masks(sample.feeds).values() if np.ndim(array) > 1]
    ranked += [np.asarray(array) for array in sample.feeds.values() if np.ndim(array)]
    return len(ranked[0]) if ranked else 1


def _live(array: np.ndarray, sample: Sample, batch: int) -> np.ndarray:
    """The part of an output that is compared: all but dead rows; nothing where dead rows cannot be told apart."""
    if not sample.dead_rows:
        return array
    if array.ndim == 0 or len(array) != batch:
        return array.reshape(-1)[:0]
    return np.delete(array, sample.dead_rows, axis=0)


class _Output:
    """Running sums of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.max_abs = self.signal = self.noise = self.cosines = 0.0
        self.relative, self.cosine_min = -1.0, math.inf
        self.vectors = self.width = self.nonfinite = self.uncompared = 0
        self.worst = self.worst_cosine = ""

    def add(self, expected: np.ndarray, got: np.ndarray, sample: Sample, batch: int) -> None:
        live = [row for row in range(len(expected) if expected.ndim else 1) if row not in sample.dead_rows]
        if sample.dead_rows:
            self._check_dead(expected, got, sample, batch)
        if sample.dead_rows and (expected.ndim == 0 or len(expected) != batch):
            self.uncompared += 1
            return
        peak, worst_abs, worst_row = 0.0, -1.0, live[0] if live else 0
        for row, b, a in _blocks(expected, got, live):
            error = self._block(b, a, sample, row)
            peak = max(peak, float(np.abs(b).max()))
            if error > worst_abs:
                worst_abs, worst_row = error, row
        if not live:
            return
        relative = 0.0 if worst_abs == 0 else (worst_abs / peak if peak else math.inf)
        self.max_abs = max(self.max_abs, worst_abs)
        if relative > self.relative:
            self.relative, self.worst = relative, sample.where(worst_row)

    def _check_dead(self, expected: np.ndarray, got: np.ndarray, sample: Sample, batch: int) -> None:
        """Dead rows must be finite where the source's are: some sources (nn.TransformerEncoderLayer) give NaN there."""
        rows = slice(None) if expected.ndim == 0 or len(expected) != batch else list(sample.dead_rows)
        b, a = (np.atleast_1d(array)[rows] for array in (expected, got))
        bad = ~np.isfinite(a) & np.isfinite(b)
        if not bad.any():
            return
        self.nonfinite += int(bad.sum())
        self.max_abs = self.relative = math.inf
        self.worst = sample.where(sample.dead_rows[0]) + " (all masked)"

    def _block(self, b: np.ndarray, a: np.ndarray, sample: Sample, row: int) -> float:
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
        self.width = b.shape[1]
        self.cosines += float(cosines.sum())
        if cosines.min() < self.cosine_min:
            self.cosine_min, self.worst_cosine = float(cosines.min()), sample.where(row)
        return math.inf if bad.any() else float(difference.max())

    def result(self) -> OutputResult:
        return OutputResult(
            self.name,
            self.max_abs,
            self.relative,
            self.cosine_min,
            self.cosines / self.vectors,
            _decibels(self.signal, self.noise),
            self.vectors,
            self.width,
            self.nonfinite,
            self.uncompared,
            self.worst,
            self.worst_cosine,
        )


def _blocks(expected: np.ndarray, got: np.ndarray, rows: list[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
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


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits, each optional: `rel` is the largest relative error, the others are the smallest values allowed."""

    rel: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None


# fp32: another order of float32 sums over a few hundred terms moves a result by about 1e-6 of its peak; 1e-5 leaves room for
#   a dozen layers and none for a lower precision (TF32 and fp16 give 1e-3).
# fp16: 11 significant bits round to 5e-4 of a value. Such errors, independent over the elements of a vector, take 1e-7 off its
#   cosine per rounding; 0.9999 allows some hundred roundings, and a broken mask or a lost bias takes far more. One
#   decision in a hundred may be a near-tie.
# bf16: 8 bits, errors 8 times larger, a cosine up to 64 times further from 1 where nothing is kept in fp32; with the softmax and
#   the norms in fp32, 10 times is the allowance.
DEFAULT_BUDGETS: Mapping[str, Budget] = {
    "fp32": Budget(rel=1e-5),
    "fp16": Budget(cosine=0.9999, agreement=0.99),
    "bf16": Budget(cosine=0.999, agreement=0.97),
}


@dataclasses.dataclass(frozen=True)
class Violation:
    """One limit that was broken, and where it was broken most."""

    output: str
    metric: str
    found: float
    wanted: float
    worst: str

    def __str__(self) -> str:
        bound = "at most" if self.metric in ("relative error", "values not finite") else "at least"
        at = f"; worst: {self.worst}" if self.worst else ""
        return f"{self.output}: {self.metric} {self.found:.6g}, wanted {bound} {self.wanted:.6g}{at}"

    def to_json(self) -> dict[str, Any]:
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def judge(result: Result, budget: Budget) -> list[Violation]:
    """Every limit of the budget that the result breaks; a value that is not finite where the source's is breaks any budget.

    A decision that could not be compared (`Decision.total` of 0) breaks nothing: its note says why. Of few decisions one may
    differ: 99 % of 64 is not a whole number, and one near-tie is no evidence.
    """
    broken = [violation for output in result.outputs for violation in _judge_output(output, budget)]
    for decision in result.decisions:
        value = decision.value
        if value is None or budget.agreement is None:
            continue
        allowed = math.ceil((1 - budget.agreement) * decision.total - 1e-9)
        if decision.total - decision.agreed > allowed:
            broken.append(Violation("decision", decision.name, value, budget.agreement, decision.worst))
    return broken


def _judge_output(output: OutputResult, budget: Budget) -> Iterator[Violation]:
    if output.nonfinite:
        yield Violation(output.name, "values not finite", output.nonfinite, 0, output.worst)
    if budget.rel is not None and not output.relative <= budget.rel:  # so written, a NaN breaks the limit
        yield Violation(output.name, "relative error", output.relative, budget.rel, output.worst)
    if budget.cosine is not None and output.width < NARROW:
        # The angle between two short vectors is all noise where both are near zero (two logits of a token that is neither class).
        # The same allowance, sqrt(2 - 2 cos) of the length, is held against the largest value of the sample instead.
        allowed = math.sqrt(2 - 2 * budget.cosine)
        if not output.relative <= allowed:
            yield Violation(output.name, "relative error", output.relative, allowed, output.worst)
    elif budget.cosine is not None and not output.cosine_min >= budget.cosine:
        yield Violation(output.name, "cosine", output.cosine_min, budget.cosine, output.worst_cosine)
    if budget.sqnr_db is not None and not output.sqnr_db >= budget.sqnr_db:
        yield Violation(output.name, "SQNR (dB)", output.sqnr_db, budget.sqnr_db, output.worst)
