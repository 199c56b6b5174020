"""Nodes that measured values keep in float32: values past the range of the type or too small for it, sums it cannot make.

Decided for each node from its own values (`_value_ranges`), never for an operator. A value that must not be in the type
keeps the node that makes it and the nodes that read it in float32, and none beyond: an island ends where the values fit again.
TensorRT accumulates the products of a GEMM in float32 whatever its type, so a GEMM is judged by what it reads and writes; an
engine that accumulates in half may want more islands than this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..graph import Graph
from ._plan import SUMS, Island
from ._value_ranges import Evidence, LargestSum, RangeRequest, Sum, ValueRange, measure_ranges

if TYPE_CHECKING:
    from ._half import HalfType

FLOAT = ir.DataType.FLOAT
# Samples are not all the traffic. 400 real texts took no value of MiniLM-L6 past 3.6 times its largest on synthetic
# samples (benchmarks/bench_islands.py): what comes within a factor of 4 of the largest number is taken to leave the range.
MARGIN = 4.0
FEW = 16  # numbers: fewer than these may all be small by chance
# A sum of n numbers, each addition rounded, is off by n * u of the sum of magnitudes at most (Higham, Accuracy and Stability of
# Numerical Algorithms, 4.2; u is 2^-11 in float16): past a quarter it is too deep.
LOST = 0.25
COARSE = 2.0**-8  # radians
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"})
OVER_PLACES = frozenset({"InstanceNormalization", "GlobalAveragePool"})  # the sum runs over all axes behind the channels
REDUCTIONS = {"ReduceSum": 1, "ReduceMean": 1, "ReduceL1": 1, "ReduceL2": 2, "ReduceSumSquare": 2}
PAST, FAINT = "past the range of {}", "too small for {}"
MADE_UP = 1e30  # no activation is as large: it is the constant that a mask writes
CARRIES = frozenset(
    "Concat Expand Flatten Gather GatherND Identity Reshape Slice Split Squeeze Transpose Unsqueeze Where".split()
)


@dataclasses.dataclass(frozen=True)
class ValueFindings:
    """What the values say: nodes that they keep in float32, and sums of nodes that are in float32 either way."""

    demanded: dict[ir.Node, Island]
    sums: dict[ir.Node, Island]
    notes: tuple[str, ...]


def judge_values(graph: Graph, clamped: Graph, half: HalfType, evidence: Evidence, cuts: Mapping[str, float]) -> ValueFindings:
    """Measure the values of `clamped`, which is `graph` with the mask constants it will have, and judge the nodes of `graph`."""
    nodes = list(graph.model.graph)
    summed = {node: found for node in nodes if (found := summed_by(node)) is not None}
    wanted: dict[str, list[Sum]] = {}
    for node, each in summed.items():
        wanted.setdefault(str(node.inputs[0].name), []).append(each)  # type: ignore[union-attr]
    ranges = measure_ranges(clamped, evidence.samples, RangeRequest(half.tiny, cuts, wanted))
    faint = _faint(nodes, ranges, half)
    judged = {node: _past(node, ranges, half) or faint.get(node) or _angle(node, ranges, half) for node in nodes}
    demanded = {node: island for node, island in judged.items() if island is not None}
    _carry(nodes, demanded, half)
    sums = {n: island for n, each in summed.items() if (island := _sum(n, each, ranges, half)) is not None}
    return ValueFindings(demanded, sums, tuple(_unsound(ranges)))


def _floats(node: ir.Node) -> Iterator[ir.Value]:
    """The float values that a node reads and makes, constants left out."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == FLOAT and value.const_value is None:
            yield value


def _past(node: ir.Node, ranges: Mapping[str, ValueRange], half: HalfType) -> Island | None:
    """The first value of a node that leaves the range, of those it makes before those it reads."""
    for value in reversed(list(_floats(node))):
        found = ranges.get(str(value.name))
        if found is None:
            continue
        made = "reaches" if value in node.outputs else f"reads {value.name!r}, which reaches"
        kind = PAST.format(half.mode)
        if found.largest > half.max / MARGIN:
            text = f"{made} {found.largest:.2g} on {found.where!r}; {_holds(found.largest, half)}"
            return Island(text, "data", kind, found.largest, found.where)
        if found.masked < -half.max:
            return Island(f"{made} {found.masked:.2g} where a mask is; {_holds(half.max, half)}", "data", kind, found.masked)
    return None


def _carry(nodes: list[ir.Node], demanded: dict[ir.Node, Island], half: HalfType) -> None:
    """Add what takes a part of a mask whose constant the type cannot hold: where no sample masked anything, another may.

    In the type the constant would be -inf, and the softmax of a row that is all masked NaN.
    """
    kind = PAST.format(half.mode)
    for node in nodes:
        if node in demanded or node.op_type not in CARRIES:
            continue
        for maker in (value.producer() for value in _floats(node) if value in node.inputs):
            before = demanded.get(maker) if maker is not None else None
            if before is not None and before.kind == kind and (before.measured or 0.0) >= MADE_UP:
                text = f"passes on a part of what reaches {before.measured:.2g}; {_holds(half.max, half)}"
                demanded[node] = Island(text, "data", kind, before.measured, before.sample)


def _holds(number: float, half: HalfType) -> str:
    near = f", and the margin is a factor of {MARGIN:g}" if number < half.max else ""
    return f"{half.mode} holds {half.max:g}{near}"


def _angle(node: ir.Node, ranges: Mapping[str, ValueRange], half: HalfType) -> Island | None:
    """A sine of an angle that rounding turns into another angle: 511 is off by a quarter in float16."""
    held = ranges.get(str(node.inputs[0].name)) if node.op_type in ("Sin", "Cos") and node.inputs[0] is not None else None
    if held is None or held.largest * half.unit <= COARSE:
        return None
    off = held.largest * half.unit
    text = f"an angle of {held.largest:.3g} on {held.where!r} is off by up to {off:.2g} in {half.mode}"
    return Island(text, "data", f"angles too coarse in {half.mode}", held.largest, held.where)


def _faint(nodes: list[ir.Node], ranges: Mapping[str, ValueRange], half: HalfType) -> dict[ir.Node, Island]:
    """Makers and readers of values that vanish in the type, where the reader would tell.

    Two cases: a divisor (or what a root or a logarithm is taken of) with numbers that become zero; a value all of whose numbers,
    on some sample, lie below the normal numbers of the type, read by anything but a sum with what is so much larger that it would
    not be seen in it. A single faint row among others is not seen here.
    """
    found: dict[ir.Node, Island] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            held = ranges.get(str(value.name)) if value is not None and value.const_value is None else None
            if value is None or held is None or not _tells(node, index, held, ranges, half):
                continue
            text = f"{held.flushed} of {held.values} numbers of {value.name!r} would be zero in {half.mode}"
            number = held.smallest
            if not _divides(node, index) or not held.flushed:
                text = f"all of {value.name!r} is below {held.faintest:.2g} on {held.faint!r}; "
                text, number = text + f"{half.mode} is exact from {half.normal:.2g} on", held.faintest
            island = Island(text, "data", FAINT.format(half.mode), number, held.faint)
            for each in (value.producer(), node):
                if each is not None:
                    found.setdefault(each, island)
    return found


def _divides(node: ir.Node, index: int) -> bool:
    return (node.op_type, index) in (("Div", 1), ("Reciprocal", 0), ("Log", 0), ("Sqrt", 0))


def _tells(node: ir.Node, index: int, held: ValueRange, ranges: Mapping[str, ValueRange], half: HalfType) -> bool:
    """Whether a node's result shows that this operand lost digits or became zero."""
    if _divides(node, index) and held.flushed:
        return True
    if held.faintest >= half.normal or held.elements < FEW or node.op_type in ("Cast", "Shape"):
        return False
    made = ranges.get(str(node.outputs[0].name))
    hidden = node.op_type in ("Add", "Sub") and made is not None and made.faintest > held.largest / half.unit
    return not hidden


def summed_by(node: ir.Node) -> Sum | None:
    """What a node sums of its first input; None for a node that sums nothing, or over axes that are not known here."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.dtype != FLOAT or value.const_value is not None or value.shape is None:
        return None
    rank = len(value.shape)
    if node.op_type in NORMALIZATIONS:
        axis = node.attributes.get_int("axis", -1) % rank
        return Sum((axis,) if node.op_type == "LpNormalization" else tuple(range(axis, rank)), 2)
    if node.op_type == "CumSum":
        along = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        return Sum((int(along.numpy().reshape(-1)[0]),), 1) if along is not None else None
    if node.op_type in OVER_PLACES:
        return Sum(tuple(range(2, rank)), 2 if node.op_type == "InstanceNormalization" else 1)
    if node.op_type not in REDUCTIONS:
        return None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        return Sum((), REDUCTIONS[node.op_type])
    axes = ir.convenience.get_const_tensor(given)
    return Sum(tuple(int(a) for a in axes.numpy().reshape(-1)), REDUCTIONS[node.op_type]) if axes is not None else None


def _sum(node: ir.Node, each: Sum, ranges: Mapping[str, ValueRange], half: HalfType) -> Island | None:
    """What makes a sum too large or too deep for the type; None for one it could make."""
    held = ranges.get(str(node.inputs[0].name))  # type: ignore[union-attr]
    made = held.sums.get(each) if held is not None else None
    if made is None:
        return None
    what = f"sums {made.terms} {'squares' if each.power == 2 else 'numbers'}"
    if made.largest > half.max / MARGIN:
        text = f"{what} to {made.largest:.2g} on {made.where!r}; {_holds(made.largest, half)}"
        return Island(text, "data", SUMS, made.largest, made.where)
    return _deep(made, what, half)


def _deep(made: LargestSum, what: str, half: HalfType) -> Island | None:
    if made.terms * half.unit <= LOST:
        return None
    return Island(f"{what}; in {half.mode} it may be off by a quarter past {LOST / half.unit:g}", "data", SUMS, float(made.terms))


def _unsound(ranges: Mapping[str, ValueRange]) -> Iterator[str]:
    """What no type can mend: values that are not finite in float32 either."""
    broken = {name: each for name, each in ranges.items() if not each.finite}
    if broken:
        name, first = next(iter(broken.items()))
        kinds = "NaN" if first.nan else "Inf"
        yield f"{len(broken)} values are not finite even in float32, the first is {name!r} ({kinds})"
