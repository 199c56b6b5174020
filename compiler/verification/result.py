"""The result of a comparison: closeness of each output, decisions, metrics."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .closeness import OutputResult
    from .decisions import Decision
    from .intervals import Metric


@dataclasses.dataclass(frozen=True)
class ComparisonResult:
    """What a Comparison measured. `note` says so when the task has no decision.

    `metrics` are the task's metrics where the rows have labels, else, with intervals, the mean cosine of an output
    of vectors and the share of each kind of decision that is kept. No outputs: the source was not available.
    """

    task: str
    outputs: tuple[OutputResult, ...]
    decisions: tuple[Decision, ...]
    samples: int
    rows: int
    note: str = ""
    metrics: tuple[Metric, ...] = ()
    labelled: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings; infinities as "inf" and "-inf", which JSON has no number for."""
        measured = {out.name: {key: _plain(value) for key, value in dataclasses.asdict(out).items()} for out in self.outputs}
        return {
            "task": self.task,
            "samples": self.samples,
            "rows": self.rows,
            "outputs": measured,
            "decisions": [decision.to_json() for decision in self.decisions],
            "metrics": [metric.to_json() for metric in self.metrics],
            "note": self.note,
        }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
