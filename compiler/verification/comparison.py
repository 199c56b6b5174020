"""How far an engine's outputs are from its source's, and whether that is within a budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core import DataError, Feeds, VerifyFailed
from ..data import Labels, Layout, Sample, row_count
from . import intervals as confidence
from . import task_metrics as scores
from .choices import ChoiceSums, Ties
from .closeness import MIN_COSINE_WIDTH, OutputResult, OutputSums
from .decisions import Decision, decision_counters
from .intervals import Metric
from .result import ComparisonResult


class Comparison:
    """Feed it batch by batch and ask for the result at the end; memory stays flat but for sentence vectors and single logits.

    `task` chooses the decisions to compare, `blank` is the CTC blank id, `labels` say what the labels of the samples mean.
    `intervals`: say how sure the shares of decisions are, which needs scipy. `layout`: which axes count rows, the first ones
    where it is not given. `ties`: which different choices of an integer output are equally good, none where it is not given.
    """

    def __init__(
        self,
        task: str = "features",
        *,
        blank: int = 0,
        labels: Labels | None = None,
        intervals: bool = False,
        layout: Layout | None = None,
        ties: Ties | None = None,
    ) -> None:
        self.task, self.layout, self.ties = task, layout, ties
        self._scorer = scores.scorer_for(labels) if labels else None
        self._intervals = intervals
        self._outputs: dict[str, OutputSums | ChoiceSums] = {}
        self._counters = decision_counters(task, blank)
        self._samples = self._rows = 0

    def add(self, expected: Mapping[str, np.ndarray] | None, got: Mapping[str, np.ndarray], sample: Sample) -> None:
        """Compare one sample. `expected` is None where only the artifact's own metric can be measured. Raises VerifyFailed for
        missing, unknown or differently shaped outputs and for NaN from the source, DataError for nothing to compare."""
        got = {name: np.asarray(array) for name, array in got.items()}
        if expected is not None:
            expected = {name: np.asarray(array) for name, array in expected.items()}
            self._compare(expected, got, sample)
        if self._scorer:
            self._scorer.add(expected, got, sample)
        self._samples += 1
        self._rows += row_count(sample, self.layout) - len(sample.dead_rows)

    def _compare(self, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], sample: Sample) -> None:
        self._check(expected, got, sample)
        batch = row_count(sample, self.layout)
        for name, array in expected.items():
            if name not in self._outputs:
                self._outputs[name] = self._sums(name, array)
            wanted, made = (self._rows_first(name, each) for each in (array, got[name]))
            self._outputs[name].add(wanted, made, sample, batch if self._knows_rows(name) else -1)
        for counter in self._counters:
            counter.add(expected, got, sample)

    def _sums(self, name: str, array: np.ndarray) -> OutputSums | ChoiceSums:
        if array.dtype.kind not in "iub":
            of_one, single = (self.ties.of_one, self.ties.single) if self.ties is not None else (frozenset(), frozenset())
            return OutputSums(name, of_one=name in of_one, single=name in single)
        return ChoiceSums(name, self._tied if self.ties is not None else None)

    def _tied(self, name: str, expected: np.ndarray, got: np.ndarray, feeds: Feeds) -> np.ndarray:
        assert self.ties is not None
        axis = self._axis(name)
        wanted, made = (np.moveaxis(a, 0, axis) if a.ndim else a for a in (expected, got))
        found = self.ties.tied(name, wanted, made, feeds)
        return np.moveaxis(found, axis, 0) if found.ndim else found

    def _axis(self, name: str) -> int:
        return (self.layout.outputs.get(name) if self.layout else 0) or 0

    def _knows_rows(self, name: str) -> bool:
        """Whether an output has an axis of rows, as far as anybody knows."""
        return self.layout is None or self.layout.batch is None or self.layout.outputs.get(name) is not None

    def _rows_first(self, name: str, array: np.ndarray) -> np.ndarray:
        axis = self._axis(name)
        return np.moveaxis(array, axis, 0) if axis else array

    def _check(self, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], sample: Sample) -> None:
        if not expected:
            raise DataError(f"the source has no outputs for {sample.label}: nothing to compare with")
        if set(expected) != set(got) or (self._outputs and set(expected) != set(self._outputs)):
            known = ", ".join(self._outputs or expected)
            gave = f"the source gave {', '.join(expected)}, the engine {', '.join(got) or 'nothing'}"
            raise VerifyFailed(f"{sample.label}: expected outputs {known}; {gave}")
        for name, array in expected.items():
            if array.shape != got[name].shape:
                raise VerifyFailed(f"{sample.label}: output {name!r} has shape {got[name].shape}, in the source {array.shape}")
            if not array.size:
                raise DataError(f"{sample.label}: output {name!r} of shape {list(array.shape)} is empty: nothing to compare")
            rows = row_count(sample, self.layout) if self._knows_rows(name) else -1
            if np.isnan(_live(self._rows_first(name, array), sample, rows)).any():
                raise VerifyFailed(
                    f"{sample.label}: the source gives NaN in output {name!r}; check its weights, and whether it takes this input"
                )

    def least_scales(self) -> dict[str, float]:
        """Of each output of floats, as `OutputSums.least_scale`."""
        return {name: output.least_scale() for name, output in self._outputs.items() if isinstance(output, OutputSums)}

    def result(self, least_scales: Mapping[str, float] | None = None, *, part: bool = False) -> ComparisonResult:
        """Raises DataError when no sample, or no live row, was compared: that would be a check that cannot fail.

        `least_scales`: those of a comparison of more samples, which these are a `part` of: an output that nothing here tells of
        (a row all masked, and no axis of rows) is left to the others.
        """
        if not self._samples:
            raise DataError("no samples were compared; give data with at least one row")
        for output in self._outputs.values():
            if not output.vectors and not part:
                raise DataError(f"no row of output {output.name!r} was compared: every row is fully masked; give other data")
        decisions = tuple(d for counter in self._counters if (d := counter.result()) is not None) if self._outputs else ()
        decisions += tuple(output.decision() for output in self._outputs.values() if isinstance(output, ChoiceSums))
        note = "" if decisions or self._counters else f"no decisions for task {self.task!r}"
        least = least_scales or {}
        outputs = tuple(
            o.result(least.get(name)) if isinstance(o, OutputSums) else o.result()
            for name, o in self._outputs.items()
            if o.vectors
        )
        metrics = self._scorer.result() if self._scorer else (*self._mean_cosine(outputs), *self._decisions_kept(decisions))
        return ComparisonResult(self.task, outputs, decisions, self._samples, self._rows, note, metrics, self._scorer is not None)

    def _mean_cosine(self, outputs: tuple[OutputResult, ...]) -> tuple[Metric, ...]:
        """The mean cosine of the first output of vectors, where the vectors themselves are what the task is for."""
        vectors = [output for output in outputs if output.width >= MIN_COSINE_WIDTH and output.rows]
        if not vectors or not self._intervals or (self._counters and self.task != "sentence-embedding"):
            return ()
        return (confidence.mean_cosine(vectors[0].cosine_of_rows, vectors[0].cosine_spread, vectors[0].rows),)

    def _decisions_kept(self, decisions: tuple[Decision, ...]) -> tuple[Metric, ...]:
        """The share of each kind of decision that is kept, with its interval."""
        counted = [decision for decision in decisions if decision.total and self._intervals]
        return tuple(confidence.changed_share(f"kept: {d.name}", d.total - d.agreed, d.total, d.units) for d in counted)


def _live(array: np.ndarray, sample: Sample, batch: int) -> np.ndarray:
    """The part of an output that is compared: all but dead rows; nothing where dead rows cannot be told apart."""
    if not sample.dead_rows:
        return array
    if array.ndim == 0 or len(array) != batch:
        return array.reshape(-1)[:0]
    return np.delete(array, sample.dead_rows, axis=0)
