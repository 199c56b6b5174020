"""Which nodes stay in float32, and why; which mask constants need a finite stand-in.

The rules here need no data. They are about constants, about what ONNX allows, and about operators that float32 costs nothing:
sums and exponentials. `_evidence` adds what measured values demand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from ..graph import Graph
from ..runtime import PLUGIN_DOMAIN
from ._evidence import judge_values
from ._kernels import Kernels
from ._plan import SUMS, Island
from ._value_ranges import Evidence

if TYPE_CHECKING:
    from ._half import HalfType

FLOAT = ir.DataType.FLOAT
# Sums over many terms. They cost no kernel in float32: TensorRT computes them in float32 registers inside the kernel that they
# are fused into either way (benchmarks/bench_islands.py counts kernels of each form).
REDUCTIONS = frozenset(
    """LayerNormalization RMSNormalization GroupNormalization InstanceNormalization LpNormalization SimplifiedLayerNormalization
    Softmax LogSoftmax ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceSumSquare ReduceProd ReduceLogSum ReduceLogSumExp
    GlobalAveragePool""".split()
)
# Functions whose result leaves the range for ordinary arguments, and sums, that cost a kernel in float32: they are no longer
# fused into the GEMM before them, or stand alone. Without data they are islands; with data only where that demands it.
RANGE = frozenset("Exp Log Pow Sqrt Reciprocal Softplus Sin Cos".split())
COSTLY_SUMS = frozenset({"CumSum", "AveragePool", "BatchNormalization"})
ELEMENTWISE = frozenset("Add Sub Mul Div Min Max Clip Neg Abs Where Unsqueeze Squeeze Reshape Expand Identity Transpose".split())
# Between a mask constant and the softmax it is for.
MASK_PATH = frozenset(
    """Where Mul Add Sub Expand Unsqueeze Squeeze Reshape Cast Concat Slice Transpose Identity Max Min Clip Constant
    ConstantOfShape Tile Gather GatherND ScatterND Neg Not""".split()
)
ORDER_ONLY = frozenset({"Softmax", "LogSoftmax", "ReduceMax", "TopK", "ArgMax", "MaxPool"})
SCORE_BIAS = {
    ("", "Attention"): 3,
    ("com.microsoft", "Attention"): 5,
    ("com.microsoft", "MultiHeadAttention"): 5,
    ("com.microsoft", "PackedAttention"): 5,
    ("com.microsoft", "PackedMultiHeadAttention"): 6,
    (PLUGIN_DOMAIN, "packed_attention_without_bias"): 2,
}
ROUNDS = frozenset({"Floor", "Ceil", "Round"})
QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
MOVES = frozenset("Unsqueeze Squeeze Reshape Expand Identity Transpose".split())
GEMMS = frozenset({"MatMul", "Gemm"})
TIED = Island("a quantised GEMM and its two operands share one type, and one of them is float32", kind="tied to a quantised GEMM")
GROWN = Island("arithmetic of the island before it", "free")
MASK = -1e4  # a constant at or below this that only softmax sees is a mask's
SMALL = 2**20  # numbers: a mask constant is one, or a table of positions by positions
COUNTED = "it counts samples or tokens: too large a number for the type"


@dataclasses.dataclass(frozen=True)
class IslandDecision:
    """The islands, the constants that change (what they were, and why), and notes for the user."""

    islands: dict[ir.Node, Island]
    clamps: dict[ir.Value, tuple[float, str]]
    notes: tuple[str, ...] = ()


def decide_islands(
    graph: Graph, half: HalfType, evidence: Evidence | None = None, kernels: Kernels | None = None
) -> IslandDecision:
    """The nodes that must be islands by rule, each grown over its own arithmetic; then those that the evidence demands.

    `kernels` are those of the compiler; without them it is taken to have what ONNX admits, and no operator of another domain.
    """
    nodes = list(graph.model.graph.all_nodes())
    islands: dict[ir.Node, Island] = {}
    clamps: dict[ir.Value, tuple[float, str]] = {}
    for node in nodes:
        if (island := _by_rule(node, graph, half, clamps, kernels)) is not None:
            islands[node] = island
    _count(nodes, islands)
    values = None if evidence is None else judge_values(graph, _clamped(graph, clamps, half), half, evidence, _cuts(graph, half))
    if values is not None:
        islands |= {node: island for node, island in values.sums.items() if node in islands}
        _spare(nodes, islands, values.demanded, half)
    _grow(nodes, islands)
    if values is not None:  # a measured reason says more than a rule; a node that ONNX has no other form of stays what it is
        islands |= {node: each for node, each in values.demanded.items() if node not in islands or islands[node].by == "free"}
    _tie(nodes, islands)
    _shrink(nodes, islands, half)
    notes = values.notes if values is not None else ()
    return IslandDecision({node: islands[node] for node in nodes if node in islands}, clamps, notes)


def _spare(nodes: list[ir.Node], islands: dict[ir.Node, Island], demanded: Mapping[ir.Node, Island], half: HalfType) -> None:
    """Take out what costs a kernel in float32 and no data demands.

    Beside another island it stays: there float32 saves a cast, and the digits of a variance on its way to its root.
    """
    spared = {n: islands.pop(n) for n in nodes if _is_costly(n, islands) and n not in demanded and _constants_fit(n, half)}
    while spared:
        grown = dict(islands)
        _grow(nodes, grown)
        listed = {node for node, island in grown.items() if island.reason}
        beside = {node for node in spared if not listed.isdisjoint(_neighbours(node))}
        if not beside:
            return
        islands |= {node: spared.pop(node) for node in beside}


def _leaves_range(node: ir.Node) -> bool:
    """Whether it is a function of RANGE, or the x * x of a sum of squares, which jax writes for Pow(x, 2).

    A variance as the mean of squares less the square of the mean (jax again) is all that the two do not share: a square that is
    rounded before it is summed may be off by more than that.
    """
    squares = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    return node.op_type in RANGE or (squares and any(user.op_type in REDUCTIONS for user, _ in node.outputs[0].uses()))


def _is_costly(node: ir.Node, islands: Mapping[ir.Node, Island]) -> bool:
    return (_leaves_range(node) or node.op_type in COSTLY_SUMS) and node in islands and islands[node].by == "free"


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    yield from (maker for v in node.inputs if v is not None and (maker := v.producer()) is not None)
    yield from (user for v in node.outputs for user, _ in v.uses())


def _constants_fit(node: ir.Node, half: HalfType) -> bool:
    """Whether the constants of a node, a variance among them, have all their digits in the type."""
    for value in node.inputs:
        if value is None or value.dtype != FLOAT or value.const_value is None:
            continue
        magnitudes = np.abs(value.const_value.numpy())
        if (magnitudes > half.max).any() or ((magnitudes > 0) & (magnitudes < half.normal)).any():
            return False
    return True


def _clamped(graph: Graph, clamps: Mapping[ir.Value, tuple[float, str]], half: HalfType) -> Graph:
    """A copy with the mask constants that the typed graph has, so that what is measured is what will run."""
    copy = graph.copy()
    for value in clamps:
        held = copy.model.graph.initializers[str(value.name)]
        assert held.const_value is not None
        held.const_value = ir.tensor(np.maximum(held.const_value.numpy(), np.float32(half.mask)), name=held.name)
    return copy


def _cuts(graph: Graph, half: HalfType) -> dict[str, float]:
    """For values that a mask constant flows through to a softmax: half of it; at or below that they are the mask's."""
    found: dict[str, float] = {}
    for value in graph.model.graph.initializers.values():
        if value.dtype != FLOAT or value.const_value is None or value.const_value.size > SMALL:
            continue
        path = _mask_path(value)
        low = max(_extremes(value.const_value)[0], half.mask) if path else 0.0
        if low <= MASK:
            found |= {str(each.name): max(low / 2, found.get(str(each.name), low)) for each in path}
    return found


def _by_rule(
    node: ir.Node, graph: Graph, half: HalfType, clamps: dict[ir.Value, tuple[float, str]], kernels: Kernels | None
) -> Island | None:
    floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == FLOAT]
    if not floats:
        return Island("")
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype != FLOAT:
        return Island("")  # integers are cast to float32 first: a count above 2048 is not a float16 number
    if node.op_type == "Constant":
        return Island("")
    if node.graph is not graph.model.graph:
        return Island("inside the body of a control-flow node")
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return Island("control flow")
    if node.op_type in REDUCTIONS | COSTLY_SUMS and (kernels is None or node.op_type not in kernels.sums):
        return Island(SUMS, "free")
    if _leaves_range(node):
        return Island("its result can leave the range of the type", "free")
    if node.op_type == "Range":
        return Island(COUNTED)
    if not _takes(node, graph, half) and (kernels is None or not node.domain):
        return Island(f"ONNX gives {node.op_type} no {half.dtype.name.lower()} form")
    if kernels is not None and (why := kernels.lacking(node, graph.opset, half.dtype)) is not None:
        return Island(why, kind=f"no {half.mode} kernel")
    constant = _scale_reason(node, half) or _constant_reason(node, half, clamps)
    return Island(constant, "constant") if constant is not None else None


def _takes(node: ir.Node, graph: Graph, half: HalfType) -> bool:
    """Whether the operator's schema admits the type at every float input and output of this node."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=graph.opset, domain="")
    except onnx.defs.SchemaError:
        return False
    wanted = f"tensor({half.dtype.name.lower()})"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for formals, actuals in ((schema.inputs, node.inputs), (schema.outputs, node.outputs)):
        for index, value in enumerate(actuals):
            if value is None or value.dtype != FLOAT:
                continue
            formal = formals[min(index, len(formals) - 1)]
            if wanted not in allowed.get(formal.type_str, [formal.type_str]):
                return False
    return True


def _constant_reason(node: ir.Node, half: HalfType, clamps: dict[ir.Value, tuple[float, str]]) -> str | None:
    """None when every constant fits; a reason when one does not; a mask constant is clamped instead."""
    for value in node.inputs:
        if value is None or value.dtype != FLOAT or not value.is_initializer() or value.const_value is None:
            continue
        low, high, smallest = _extremes(value.const_value)
        if low < half.mask and high <= half.max and _mask_path(value):
            what = f"is outside {half.mode}" if low < -half.max else f"leaves no room for a score in {half.mode}"
            clamps[value] = (low, f"mask constant {low:g} {what}; {half.mask:g} gives the same softmax")
            continue
        if high > half.max or low < -half.max:
            return f"constant {value.name!r} holds {high if high > half.max else low:g}, outside {half.mode}"
        if value.const_value.size == 1 and 0 < smallest < half.tiny:
            return f"constant {value.name!r} = {smallest:g} is zero in {half.mode}"
    return None


def _scale_reason(node: ir.Node, half: HalfType) -> str | None:
    """Why the scale of a quantisation needs float32. The type of the scale is the type of what a DequantizeLinear makes.

    A scale that is off by a part in 256 is off by as much as int8 itself rounds; below `faint` the type's numbers lie that
    far apart.
    """
    if node.op_type not in QUANTISERS or len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    scales = np.abs(node.inputs[1].const_value.numpy().astype(np.float32))
    faint = half.tiny * 128
    small = scales[(scales > 0) & (scales < faint)]
    return f"scale {small.min():.2g} is too small for {half.mode}: too coarse below {faint:.2g}" if small.size else None


def _extremes(tensor: ir.TensorProtocol) -> tuple[float, float, float]:
    """(min, max, smallest nonzero magnitude of a scalar) of a tensor."""
    array = tensor.numpy()
    if array.size == 0:
        return 0.0, 0.0, 0.0
    smallest = float(np.abs(array).reshape(-1)[0]) if array.size == 1 else 0.0
    return float(array.min()), float(array.max()), smallest


def _mask_path(value: ir.Value) -> set[ir.Value]:
    """The values that a constant flows through, where it only flows, through mask arithmetic, into operators that see its order
    and not its size; none where it flows elsewhere too."""
    frontier, seen, found = [value], {value}, False
    while frontier:
        for user, index in frontier.pop().uses():
            if user.op_type in ("Shape", "Size"):
                continue  # it sees no number
            if user.op_type in ORDER_ONLY or SCORE_BIAS.get((user.domain, user.op_type)) == index:
                found = True
                continue
            if user.op_type not in MASK_PATH:
                return set()
            fresh = [v for v in user.outputs if v not in seen]
            seen.update(fresh)
            frontier.extend(fresh)
    return seen if found else set()


def _count(nodes: list[ir.Node], islands: dict[ir.Node, Island]) -> None:
    """What goes back to integers, as how many frames so many samples make: 5 s of audio are more samples than 65504."""
    counted: set[ir.Value] = set()
    for node in reversed(nodes):
        back = node.op_type == "Cast" and node.outputs[0].dtype is not None and node.outputs[0].dtype.is_integer()
        inside = node.op_type in ELEMENTWISE | ROUNDS and any(value in counted for value in node.outputs)
        floats = [v for v in node.inputs if v is not None and v.dtype == FLOAT and not v.is_initializer()]
        if floats and (back or inside):
            counted.update(floats)
            known = islands.get(node)
            islands[node] = known if known is not None and known.reason else Island(COUNTED)


def _grow(nodes: list[ir.Node], islands: dict[ir.Node, Island]) -> None:
    """Arithmetic whose every float operand comes out of an island belongs to it, and so does a division by one.

    A cast down and up again between them would only lose digits (sqrt(variance + 1e-12) is zero in float16).
    """
    for node in nodes:
        if node in islands or node.op_type not in ELEMENTWISE:
            continue
        operands = _floats_read(node)
        inside = {v: islands[p] for v in operands if (p := v.producer()) is not None and p in islands}
        divisor = node.op_type == "Div" and node.inputs[1] in inside
        if operands and (all(v in inside for v in operands) or divisor) and any(each.reason for each in inside.values()):
            islands[node] = GROWN
    for node in reversed(nodes):
        # What only moves values to readers outside does it in half: the cast goes before it.
        moved_on = islands.get(node) == GROWN and node.op_type in MOVES
        if moved_on and not any(user in islands for value in node.outputs for user, _ in value.uses()):
            del islands[node]


def _tie(nodes: list[ir.Node], islands: dict[ir.Node, Island]) -> None:
    """Both operands of a quantised GEMM come out of a DequantizeLinear in one type, which is the GEMM's: with a cast between,
    TensorRT computes it in floating point, or refuses it ("type mismatch between matmul operand scales").

    So what keeps one of the three in float32 keeps the others, and what else reads the same operands.
    """
    units = [[node, *makers] for node in nodes if node.op_type in GEMMS and len(makers := _dequantisers(node)) == 2]
    before = -1
    while len(islands) != before:
        before = len(islands)
        for unit in units:
            if any(node in islands for node in unit):
                islands |= {node: TIED for node in unit if node not in islands}


def _dequantisers(gemm: ir.Node) -> list[ir.Node]:
    makers = [value.producer() for value in gemm.inputs[:2] if value is not None]
    return [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]


def _shrink(nodes: list[ir.Node], islands: dict[ir.Node, Island], half: HalfType) -> None:
    """Arithmetic that an island grew into on its way to a QuantizeLinear is half where others read the island's value in half.

    In float32 it costs bytes: TensorRT then writes the value in float32, for the kernels of the others to cast (of MiniLM-L6 in
    int8 12 norms, each the residual of what follows). What the data demands is not of this arithmetic any more.
    """
    leading: set[ir.Node] = set()  # to quantisers in half, and to nothing else
    for node in reversed(nodes):
        readers = [user for value in node.outputs for user, _ in value.uses()]
        if islands.get(node) == GROWN and readers and all(u in leading or _quantises(u, islands) for u in readers):
            leading |= {node} if _holds_exactly(node, half) and not node.outputs[0].is_graph_output() else set()
    for node in nodes:
        read = _floats_read(node) if node in leading else []
        if len(read) == 1 and any(user not in islands for user in (read[0].producer(), *(u for u, _ in read[0].uses()))):
            del islands[node]


def _quantises(node: ir.Node, islands: Mapping[ir.Node, Island]) -> bool:
    return node.op_type == "QuantizeLinear" and node not in islands


def _floats_read(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and v.dtype == FLOAT and not v.is_initializer()]


def _holds_exactly(node: ir.Node, half: HalfType) -> bool:
    """Whether the type holds the constants of a node to the last digit, as it does those that `quant` chose."""
    constants = (v.const_value.numpy() for v in node.inputs if v is not None and v.dtype == FLOAT and v.const_value is not None)
    with np.errstate(over="ignore"):
        return all((each.astype(half.dtype.numpy()).astype(np.float32) == each).all() for each in constants)
