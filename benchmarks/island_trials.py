"""Is every island that the data demands needed? Each is taken out alone, and the rest of the graph run with emulated rounding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from bertc import precision
from bertc.core.tensors import Outputs
from bertc.graph.model import Graph
from bertc.precision import _typed
from bertc.precision._islands import IslandDecision, decide_islands
from bertc.precision._value_ranges import Evidence
from bertc.runtime.reference import ReferenceRunner
from bertc.verification import budgets
from bertc.verification.budgets import Budget
from bertc.verification.comparison import Comparison

if TYPE_CHECKING:
    from bertc.data.samples import Sample
    from bertc.precision._half import HalfType

MOST = 16  # islands that are tried: each costs a session and a run of the samples, up to the first that fails


@dataclasses.dataclass(frozen=True)
class Trial:
    """One island left out. `why` is what breaks without it; '' where nothing did: it is there for the margin alone."""

    node: str
    op: str
    reason: str
    why: str

    @property
    def needed(self) -> bool:
        return bool(self.why)


def trials(
    graph: Graph, mode: str, evidence: Evidence, outputs: Sequence[Outputs], budget: Budget | None = None, most: int = MOST
) -> Iterator[Trial]:
    """Leave out the first `most` islands that the data demands in a lowered float32 graph, one after another.

    `outputs` are the source's answers to the samples of `evidence`, `budget` the mode's own where it is None. At most `most`
    times the samples are run, and the values measured once. An island that nothing breaks without is kept all the same: it came
    within the margin of what other data may reach; and a sum is emulated in float32, so that one whose operands fit never shows
    that it is needed. That each is needed does not make the set the smallest of all sets: another cut through the graph, or a
    rescaling, may need fewer.
    """
    half: HalfType = precision.get(mode).HALF  # type: ignore[attr-defined]
    decided = decide_islands(graph, half, evidence)
    limits = budget or budgets.DEFAULT_BUDGETS[mode]
    demanded = [node for node, why in decided.islands.items() if why.by == "data"]
    for node in itertools.islice(demanded, most):
        broken = _without(graph, half, decided, node, evidence.samples, outputs, limits)
        yield Trial(str(node.name), node.op_type, decided.islands[node].reason, broken)


def _without(
    graph: Graph,
    half: HalfType,
    decided: IslandDecision,
    node: ir.Node,
    samples: Sequence[Sample],
    outputs: Sequence[Outputs],
    limits: Budget,
) -> str:
    """What breaks when one island is typed half, '' where nothing does."""
    rest = {other: why for other, why in decided.islands.items() if other is not node}
    runner = ReferenceRunner(_typed.write_typed(graph, half, dataclasses.replace(decided, islands=rest)).graph)
    pairs = sorted(zip(samples, outputs, strict=True), key=lambda pair: pair[0].label != decided.islands[node].sample)
    comparison = Comparison()
    for sample, expected in pairs:
        got = runner.run(sample.feeds)
        broken = [name for name, array in got.items() if np.isfinite(expected[name]).all() and not np.isfinite(array).all()]
        if broken:
            return f"{broken[0]!r} is not finite on {sample.label!r}"
        comparison.add(expected, got, sample)
    return "; ".join(map(str, budgets.find_violations(comparison.result(), limits.without_decisions())))
