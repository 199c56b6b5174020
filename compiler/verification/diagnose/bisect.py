"""The smallest set of nodes of an artifact's graph that, in float32, restores its budget.

Delta debugging (Zeller and Hildebrandt 2002, "Simplifying and Isolating Failure-Inducing Input", figure 3): groups of nodes,
first the layers, then their modules, then single nodes, are left out as long as what remains restores the budget. So the set is
1-minimal: leave any one node out, and the artifact is over its budget. That no other set is smaller is not shown; sums of many
small errors have no small set, and the search then stops after `MAX_RUNS` and says so.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import Advance, Outputs, counted
from ...data import Layout, Sample
from ...graph import Graph, Origin
from ...graph import provenance as origin
from ...runtime import emulate_rounding, reference_session, with_outputs
from .. import budgets
from ..budgets import Budget, Violation
from ..choices import Ties
from ..comparison import Comparison
from .float32_switch import Float32SwitchRunner
from .unrounded_weights import UnroundedWeights

MAX_RUNS = 200  # of one sample each
TOKENS_AT_ONCE = 1024  # tokens that are run at once
NUMBERED_MODULE = re.compile(r"^(?:.*?\.)??\w*?[a-z_]+\.\d+(?=\.|$)")
# The largest finite number of each half-precision type.
LARGEST_FINITE = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313892515355e38}
Group = tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class Float32Node:
    """One node of the set. `largest` is its largest magnitude in float32, `limit` the largest of its type (None: float32)."""

    node: str
    op: str
    origin: Origin
    largest: float
    limit: float | None

    def __str__(self) -> str:
        over = f": reaches {self.largest:,.6g}, largest of the type {self.limit:,.6g}" if self.overflows else ""
        return f"{self.op} {self.node!r} in {self.origin}{over}"

    @property
    def overflows(self) -> bool:
        return self.limit is not None and not self.largest <= self.limit

    def to_json(self) -> dict[str, Any]:
        largest = self.largest if np.isfinite(self.largest) else str(self.largest)
        return {"node": self.node, "op": self.op, **self.origin.to_json(), "largest": largest, "limit": self.limit}


@dataclasses.dataclass(frozen=True)
class Bisection:
    """What a search found.

    `verdict`: `within budget`; `not precision`: even all in float32 it is over; `found`; `not minimal`: the runs ran out.
    """

    path: str
    verdict: str
    violations: tuple[Violation, ...]  # as it is; of `not precision`, with every node in float32
    nodes: tuple[Float32Node, ...] = ()
    candidates: int = 0
    runs: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        reasons = "; ".join(map(str, self.violations))
        if self.verdict == "within budget":
            on = counted(self.samples, "sample")
            return f"the typed graph, its rounding emulated, is within its budget on {on}: no node needs float32"
        if self.verdict == "not precision":
            return f"not precision: even with all of its nodes in float32 ({self.candidates}) it is over its budget: {reasons}"
        minimal = "minimal: every one is needed" if self.verdict == "found" else "not minimal: the runs ran out"
        nodes = f"{len(self.nodes)} of {counted(self.candidates, 'node')} in float32 restore{'s' * (len(self.nodes) == 1)}"
        return f"{nodes} the budget ({minimal}; {counted(self.runs, 'run')})"

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self) | {"nodes": [node.to_json() for node in self.nodes]}
        return data | {"violations": [violation.to_json() for violation in self.violations], "summary": self.summary()}


class _OutOfRuns(Exception):
    """The runs ran out."""


class BudgetTest:
    """Whether the budget holds with some nodes in float32, each case run once. Only closeness is judged: decisions and
    metrics are about all of the data."""

    def __init__(
        self, runner: Float32SwitchRunner, task: str, budget: Budget, samples: Sequence[tuple[Sample, Outputs]], graph: Graph
    ) -> None:
        self.runner, self.task, self.budget, self.samples = runner, task, budget.without_decisions(), samples
        self.layout = Layout.of(graph.inputs, graph.outputs)
        self.ties = Ties(graph, budgets.choice_tolerance(budget))  # two labels whose scores are equal are no loss of precision
        self.runs = 0
        self._known: dict[tuple[frozenset[ir.Node], int], tuple[Violation, ...]] = {}

    def violations(self, in_float32: frozenset[ir.Node], indices: Sequence[int]) -> Iterator[tuple[int, tuple[Violation, ...]]]:
        """Sample by sample."""
        for index in indices:
            key = (in_float32, index)
            if key not in self._known:
                sample, expected = self.samples[index]
                self.runs += 1
                self.runner.in_float32 = in_float32
                comparison = Comparison(self.task, layout=self.layout, ties=self.ties)
                comparison.add(expected, self._run(sample), sample)
                self._known[key] = tuple(budgets.find_violations(comparison.result(), self.budget))
            yield index, self._known[key]

    def _run(self, sample: Sample) -> Outputs:
        """The outputs of a sample, run some rows at a time where rows are independent: what is held is then bounded."""
        specs = (*self.runner.inputs, *self.runner.outputs)
        first = {spec.dims[0] if spec.dims else 1 for spec in specs}
        count = len(next(iter(sample.feeds.values()))) if len(first) == 1 and isinstance(next(iter(first)), str) else 1
        rows = max(1, TOKENS_AT_ONCE * count // max(1, max(array.size for array in sample.feeds.values())))
        if rows >= count:
            return self.runner.run(sample.feeds)
        parts = [self.runner.run({n: a[at : at + rows] for n, a in sample.feeds.items()}) for at in range(0, count, rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def holds(self, in_float32: Sequence[ir.Node], indices: Sequence[int]) -> bool:
        return all(not broken for _, broken in self.violations(frozenset(in_float32), indices))

    def broken(self, in_float32: Sequence[ir.Node]) -> dict[int, tuple[Violation, ...]]:
        """The samples that are over the budget."""
        return {i: v for i, v in self.violations(frozenset(in_float32), range(len(self.samples))) if v}


def bisect_graph(
    path: Path,
    graph: Graph,
    task: str,
    budget: Budget,
    samples: Sequence[tuple[Sample, Outputs]],
    originals: UnroundedWeights | None = None,
    advance: Advance | None = None,
    notes: tuple[str, ...] = (),
) -> Bisection:
    """Find the set for a typed graph (float16, bfloat16 or Q/DQ nodes) on samples with what the source answers.

    Memory: the graph's weights in float32 and the activations of `TOKENS_AT_ONCE` tokens, or of one row. Raises DataError where
    the graph does not run.
    """
    judge = BudgetTest(Float32SwitchRunner(graph, originals), task, budget, samples, graph)
    advance = advance or (lambda done, total: None)
    items = judge.runner.items
    fixed = judge.runner.fixed
    notes = (*notes, f"{counted(fixed, 'weight')} in INT8 as before: stored in nothing else") if fixed else notes
    broken = judge.broken(())
    bisection = functools.partial(Bisection, str(path), candidates=len(items), samples=len(samples))
    if not broken:
        return bisection("within budget", (), runs=judge.runs, notes=notes)
    reasons = tuple(v for found in broken.values() for v in found)
    still = judge.broken(items)
    if still or not items:
        worst = tuple(v for found in still.values() for v in found) or reasons
        return bisection("not precision", _first_of_each_kind(worst), runs=judge.runs, notes=notes)
    chosen, minimal = _search(judge, items, sorted(broken, key=lambda i: _size(samples[i][0])), advance)
    sample = samples[min(broken, key=lambda i: _size(samples[i][0]))][0]
    runs = judge.runs
    del judge  # the weights of its session, before those of the next
    nodes = tuple(_describe_nodes(graph, chosen, sample))
    return bisection("found" if minimal else "not minimal", _first_of_each_kind(reasons), nodes=nodes, runs=runs, notes=notes)


def _size(sample: Sample) -> int:
    return sum(array.size for array in sample.feeds.values())


def _first_of_each_kind(violations: Sequence[Violation]) -> tuple[Violation, ...]:
    """One of each kind: that of the first sample that breaks it."""
    return tuple({(v.output, v.metric): v for v in reversed(violations)}.values())


def _search(judge: BudgetTest, items: Group, failing: Sequence[int], advance: Advance) -> tuple[Group, bool]:
    """(the set, whether no node of it can be left out): on the smallest failing sample, then with one that its answer does not do
    for, then on all of them."""
    indices, everything = [failing[0]], list(range(len(judge.samples)))
    for _ in range(2):
        attempt = _Attempt(judge, indices, items, advance)
        minimal = attempt.run()
        worse = judge.broken(attempt.best)
        if not worse:
            return attempt.best, minimal
        indices = [*indices, min(worse, key=lambda i: _size(judge.samples[i][0]))]
    attempt = _Attempt(judge, everything, items, advance)
    minimal = attempt.run()
    return attempt.best, minimal


@dataclasses.dataclass
class _Attempt:
    """A search on some samples. `best` is the smallest set so far that restores the budget on them."""

    judge: BudgetTest
    indices: Sequence[int]
    best: Group
    advance: Advance

    def run(self) -> bool:
        """False where the runs ran out."""
        try:
            self.best = minimal_nodes(self.best, self.holds)
        except _OutOfRuns:
            return False
        return True

    def holds(self, in_float32: Sequence[ir.Node]) -> bool:
        if self.judge.runs >= MAX_RUNS:
            raise _OutOfRuns
        self.advance(self.judge.runs, MAX_RUNS)
        held = self.judge.holds(in_float32, self.indices)
        self.best = tuple(in_float32) if held else self.best
        return held


def minimal_nodes(items: Group, test: Callable[[Sequence[ir.Node]], bool]) -> Group:
    """A 1-minimal part of `items` for which `test` holds, as it does for all of them: by layer, by module, by node."""
    left = items
    for key in (layer_of, lambda node: origin.origin_of(node).module or str(node.name), lambda node: str(node.name)):
        groups: dict[str, list[ir.Node]] = {}
        for node in left:
            groups.setdefault(key(node), []).append(node)
        parts = ddmin([tuple(group) for group in groups.values()], lambda some, all_=left: test(_in_graph_order(some, all_)))  # type: ignore[misc]
        left = _in_graph_order(parts, left)
    return left


def layer_of(node: ir.Node) -> str:
    """`encoder.layer.3` of what is in it, else the first two steps of the module's path."""
    path = origin.origin_of(node).module
    found = NUMBERED_MODULE.search(path)
    return found[0] if found else ".".join(path.split(".")[:2])


def _in_graph_order(groups: Sequence[Group], order: Group) -> Group:
    """The nodes of some groups, in the order of the graph."""
    wanted = {node for group in groups for node in group}
    return tuple(node for node in order if node in wanted)


def ddmin(groups: Sequence[Group], test: Callable[[Sequence[Group]], bool]) -> Sequence[Group]:
    """Zeller and Hildebrandt's ddmin: a part of `groups` for which `test` holds and of which no one group can be left out."""
    parts = 2
    while len(groups) > 1:
        size = -(-len(groups) // parts)
        chunks = [groups[at : at + size] for at in range(0, len(groups), size)]
        kept = next((chunk for chunk in chunks if test(chunk)), None)
        if kept is not None:
            groups, parts = kept, 2
            continue
        rests = ([g for other in chunks if other is not chunk for g in other] for chunk in chunks) if len(chunks) > 2 else ()
        kept = next((rest for rest in rests if test(rest)), None)
        if kept is not None:
            groups, parts = kept, max(parts - 1, 2)
        elif parts >= len(groups):
            break
        else:
            parts = min(len(groups), 2 * parts)
    return groups


def _describe_nodes(graph: Graph, nodes: Group, sample: Sample) -> Iterator[Float32Node]:
    """The nodes with what they reach when all of the graph is in float32."""
    values = {node: value for node in nodes for value in node.outputs if value.name and value.dtype is not None}
    names = [str(value.name) for value in values.values()]
    runner, weights = reference_session(emulate_rounding(with_outputs(graph, names), rounded=False))
    wanted = {each.name for each in runner.get_inputs()}
    feeds = {name: array for name, array in _cast(graph, sample.feeds).items() if name in wanted}
    found = dict(zip(names, runner.run(names, {**weights, **feeds}), strict=True))
    for node in nodes:
        value = values[node]
        array = found[str(value.name)]
        largest = float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0
        limit = LARGEST_FINITE.get(value.dtype) if value.dtype is not None else None
        yield Float32Node(str(node.name), node.op_type, origin.origin_of(node), largest, limit)


def _cast(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {spec.name: np.asarray(feeds[spec.name]).astype(spec.dtype, copy=False) for spec in graph.inputs}
