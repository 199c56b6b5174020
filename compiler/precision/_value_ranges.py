"""What the values of a graph hold when it runs: how large, how faint, whether finite, over all samples a build has at hand.

The graph runs in float32 on ONNX Runtime, a part of some nodes at a time: the values of one part on one sample are in memory,
and what later parts read of it. Each node runs once a sample, so that the pass costs one run of the model and the counting.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import DataError, RunFailed
from ..data import Sample
from ..graph import Graph, drop_unused_initializers, subgraphs
from ..runtime import reference

FLOAT = ir.DataType.FLOAT
FLOAT8 = ir.DataType.FLOAT8E4M3FN
PART = 32  # nodes: about a transformer layer
TOGETHER = 64  # samples between whose parts the values on their way are held
# What only moves values has the range of what it moves.
MOVES = frozenset("Reshape Transpose Unsqueeze Squeeze Flatten Identity".split())


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The samples that decisions are made from, and what to call them (`13 synthetic samples`)."""

    samples: Sequence[Sample]
    name: str


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of magnitudes, or of their squares, over some axes (all where there are none)."""

    axes: tuple[int, ...] = ()
    power: int = 1

    def of(self, array: np.ndarray) -> tuple[float, int]:
        """(the largest of the sums over an array, the terms of each)."""
        axes = tuple(axis % array.ndim for axis in self.axes) or None
        magnitudes = np.abs(array) if self.power == 1 else np.square(array, dtype=np.float64)
        sums = magnitudes.sum(axis=axes, dtype=np.float64)
        return float(sums.max()), array.size // sums.size


@dataclasses.dataclass(frozen=True)
class LargestSum:
    """The largest sum that was seen, its terms, and the sample it was seen on."""

    largest: float
    terms: int
    where: str


@dataclasses.dataclass
class ValueRange:
    """What one value held over all samples. Values that a mask made stand apart, in `masked`.

    `largest` is the largest magnitude, reached on the sample `where`; `smallest` the smallest that is not zero. `faintest` is the
    smallest of the samples' largest magnitudes, zeros left out, on the sample `faint`. `flushed` of `values` numbers are not
    zero and would be in the type. `masked` is the lowest number a mask made, `elements` the most in one sample. `sums` are those
    that a reader of the value makes of it.
    """

    largest: float = 0.0
    where: str = ""
    smallest: float = math.inf
    faintest: float = math.inf
    faint: str = ""
    masked: float = 0.0
    values: int = 0
    flushed: int = 0
    elements: int = 0
    nan: int = 0
    infinite: int = 0
    sums: dict[Sum, LargestSum] = dataclasses.field(default_factory=dict)

    @property
    def finite(self) -> bool:
        return not self.nan and not self.infinite

    def add(self, array: np.ndarray, label: str, tiny: float, cut: float | None = None) -> None:
        """Count a float array of one sample; at or below `cut` a number is the mask's. `tiny`: the type's smallest number."""
        if not array.size:
            return
        self.elements = max(self.elements, array.size)
        low, high = float(array.min()), float(array.max())  # NaN where there is one
        if not np.isfinite(low) or not np.isfinite(high) or (cut is not None and low <= cut):
            array = self._without(array, cut)
            if not array.size:
                return
            low, high = float(array.min()), float(array.max())
        self.values += array.size
        top = max(-low, high)
        if top > self.largest:
            self.largest, self.where = top, label
        if 0 < top < self.faintest:
            self.faintest, self.faint = top, label
        if low > tiny:  # nothing is near zero
            self.smallest = min(self.smallest, low)
            return
        self._near_zero(np.abs(array), tiny)

    def add_sums(self, array: np.ndarray, label: str, sums: Iterable[Sum]) -> None:
        """Count what readers sum of it; a sum over what is not finite says nothing, and is left out."""
        for each in sums:
            largest, terms = each.of(array) if array.size else (0.0, 0)
            before = self.sums.get(each, LargestSum(0.0, 0, ""))
            if np.isfinite(largest):
                where = label if largest >= before.largest else before.where
                self.sums[each] = LargestSum(max(largest, before.largest), max(terms, before.terms), where)

    def _without(self, array: np.ndarray, cut: float | None) -> np.ndarray:
        """The numbers that are finite and no mask's; the others are counted."""
        masked = np.zeros(array.shape, bool) if cut is None else array <= cut  # false for NaN
        nan = np.isnan(array)
        infinite = np.isinf(array) & ~masked
        self.nan += int(nan.sum())
        self.infinite += int(infinite.sum())
        if masked.any():
            self.masked = min(self.masked, float(array[masked].min()))
        return array[~(masked | nan | infinite)]

    def _near_zero(self, magnitudes: np.ndarray, tiny: float) -> None:
        """Half of the smallest number, and less, is rounded to zero."""
        smallest = float(magnitudes.min())
        if not smallest:
            smallest = float(magnitudes.min(initial=np.inf, where=magnitudes > 0))
        self.smallest = min(self.smallest, smallest)
        if smallest <= tiny / 2:
            self.flushed += int(np.count_nonzero(magnitudes <= tiny / 2)) - int(np.count_nonzero(magnitudes == 0))


@dataclasses.dataclass(frozen=True)
class RangeRequest:
    """What to count: `tiny` is the smallest positive number of the type in question.

    `cuts` gives, for values that a mask constant flows through, the number at or below which they are the mask's; `sums` what the
    readers of a value sum.
    """

    tiny: float
    cuts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sums: Mapping[str, Sequence[Sum]] = dataclasses.field(default_factory=dict)

    def count(self, found: ValueRange, name: str, array: np.ndarray, label: str) -> None:
        found.add(array, label, self.tiny, self.cuts.get(name))
        found.add_sums(array, label, self.sums.get(name, ()))


def measure_ranges(graph: Graph, samples: Sequence[Sample], wanted: RangeRequest) -> dict[str, ValueRange]:
    """The range of every float32 value that a node of the graph makes, by name, and of its float32 inputs.

    Values inside branches and loops are not measured. Raises DataError for no samples, or one that the graph does not run on.
    """
    if not samples:
        raise DataError("no samples to measure the values of the graph on; give one or more")
    parts = _parts(graph)
    found: dict[str, ValueRange] = collections.defaultdict(ValueRange)
    for at in range(0, len(samples), TOGETHER):
        held = [(sample.label, dict(sample.feeds)) for sample in samples[at : at + TOGETHER]]
        for value in graph.model.graph.inputs:
            for label, values in held if value.dtype == FLOAT else ():
                wanted.count(found[str(value.name)], str(value.name), values[str(value.name)], label)
        for part in parts:
            _measure(_Part(graph, part, wanted), held, found, wanted)
    return dict(found) | {moved: found[name] for moved, name in _moved(graph) if name in found and moved not in found}


def _measure(
    part: _Part, held: Sequence[tuple[str, dict[str, np.ndarray]]], found: dict[str, ValueRange], wanted: RangeRequest
) -> None:
    """Run one part on each sample, count what it makes, and leave in `held` what later parts read."""
    for label, values in held:
        made = part.run(values, label)
        for name in part.counted:
            wanted.count(found[name], name, made[name], label)
        values |= {name: made[name] for name in part.kept}
        for name in part.last:
            values.pop(name, None)


def _parts(graph: Graph) -> list[tuple[int, int]]:
    """First and last node of each part; one part where a value is no tensor: it cannot be handed over."""
    nodes = list(graph.model.graph)
    tensors = all(v.type is None or isinstance(v.type, ir.TensorType) for node in nodes for v in node.outputs)
    step = PART if tensors else max(1, len(nodes))
    ends = [0]
    while ends[-1] < len(nodes):
        end = min(ends[-1] + step, len(nodes))
        while end < len(nodes) and any(v.dtype == FLOAT8 for v in nodes[end - 1].outputs):
            end += 1  # numpy has no float8 that ONNX Runtime would take back
        ends.append(end)
    return list(itertools.pairwise(ends))


def _moved(graph: Graph) -> Iterator[tuple[str, str]]:
    """Values that are another one in another shape, with the name of that one, which is measured."""
    source: dict[str, str] = {}
    for node in graph.model.graph:
        if node.op_type in MOVES and not node.domain and node.inputs[0] is not None:
            before = str(node.inputs[0].name)
            source[str(node.outputs[0].name)] = source.get(before, before)
    yield from source.items()


class _Part:
    """Some consecutive nodes of a graph as a session; what they read from before are its inputs.

    `counted` are the names to measure, `kept` those that later parts read, `last` what no later part reads.
    """

    def __init__(self, graph: Graph, part: tuple[int, int], wanted: RangeRequest) -> None:
        copy = graph.copy()
        inner = copy.model.graph
        nodes = list(inner)
        before, own, later = nodes[: part[0]], nodes[slice(*part)], nodes[part[1] :]
        reads = {name for node in later for name in _read(node)}
        made = [v for node in own for v in node.outputs if v.name]
        self.counted = [str(v.name) for v in made if v.dtype == FLOAT and (_is_new(v) or v.name in wanted.sums)]
        self.kept = [str(v.name) for v in made if v.name in reads]
        inner.outputs.clear()
        inner.outputs.extend(v for v in made if v.name in {*self.counted, *self.kept})
        _let_go([*before, *later])
        handed = [_handed_over(v) for node in before for v in node.outputs if v.uses()]
        inner.remove([*before, *later], safe=True)
        fed = [*inner.inputs, *handed]
        inner.inputs.clear()
        inner.inputs.extend(v for v in fed if v.uses())
        self._names = [str(v.name) for v in inner.inputs]
        self.last = [str(v.name) for v in inner.inputs if v.name not in reads]
        drop_unused_initializers(inner)
        self._outputs = [str(v.name) for v in inner.outputs]
        opened: tuple[Any, dict[str, np.ndarray]] = (
            reference.reference_session(reference.emulate_rounding(copy)) if self._outputs else (None, {})
        )
        self._session, self._weights = opened

    def run(self, values: Mapping[str, np.ndarray], label: str) -> dict[str, np.ndarray]:
        if self._session is None:
            return {}
        feeds = {name: values[name] for name in self._names}
        try:
            found = self._session.run(self._outputs, {**self._weights, **feeds})
        except RunFailed as error:
            raise DataError(f"the float32 graph on {label}: {error}") from error
        return dict(zip(self._outputs, found, strict=True))


def _let_go(nodes: Sequence[ir.Node]) -> None:
    """The branches and bodies of nodes that are taken out read nothing any more."""
    for inside in (inside for node in nodes for inner in subgraphs(node) for inside in inner.all_nodes()):
        for index in range(len(inside.inputs)):
            inside.replace_input_with(index, None)


def _is_new(value: ir.Value) -> bool:
    """Whether its numbers are not those of a value that is measured already."""
    node = value.producer()
    return node is None or node.op_type not in MOVES or bool(node.domain)


def _handed_over(value: ir.Value) -> ir.Value:
    """An input in place of a value that an earlier part makes, for its readers here, those in branches too."""
    given = ir.Value(name=value.name, type=value.type, shape=value.shape)
    value.replace_all_uses_with(given)
    return given


def _read(node: ir.Node) -> Iterator[str]:
    """The names of what a node reads, and the nodes of its branches."""
    yield from (str(v.name) for v in node.inputs if v is not None)
    for each in subgraphs(node):
        yield from (str(v.name) for v in each.outputs)
        for inside in each:
            yield from _read(inside)
