"""Which nodes stay in float32, and why; which mask constants need a finite stand-in.

The rules are about what a type can hold, not about a model: deep sums, exponentials, and constants out of range.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from ..graph import Graph

if TYPE_CHECKING:
    from ._typed import HalfType

FLOAT = ir.DataType.FLOAT
# Sums over many terms, or functions whose result leaves the range for ordinary arguments. LayerNormalization and Softmax
# cost no extra kernel in float32: TensorRT computes them in float32 registers inside the same fused kernel.
REDUCTIONS = frozenset(
    [
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "LpNormalization",
        "SimplifiedLayerNormalization",
        "Softmax",
        "LogSoftmax",
        "ReduceSum",
        "ReduceMean",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceProd",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "CumSum",
        "GlobalAveragePool",
        "AveragePool",
    ]
)
RANGE = frozenset(["Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus", "Range", "Sin", "Cos"])
ELEMENTWISE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Min",
        "Max",
        "Clip",
        "Neg",
        "Abs",
        "Where",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Expand",
        "Identity",
        "Transpose",
    ]
)
# Between a mask constant and the softmax it is for.
MASK_PATH = frozenset(
    [
        "Where",
        "Mul",
        "Add",
        "Sub",
        "Expand",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Cast",
        "Concat",
        "Slice",
        "Transpose",
        "Identity",
        "Max",
        "Min",
        "Clip",
        "Constant",
        "ConstantOfShape",
        "Tile",
        "Gather",
        "GatherND",
        "ScatterND",
        "Neg",
        "Not",
    ]
)
ORDER_ONLY = frozenset({"Softmax", "LogSoftmax", "ReduceMax", "TopK", "ArgMax", "MaxPool", "Attention"})
ROUNDS = frozenset({"Floor", "Ceil", "Round"})
MOVES = frozenset("Unsqueeze Squeeze Reshape Expand Identity Transpose".split())
GROWN = "arithmetic of the island before it"
COUNTED = "it counts: a number of samples or tokens is too large for the type"


@dataclasses.dataclass(frozen=True)
class Decision:
    """`islands`: node -> reason ('' where float32 costs and changes nothing: a cast from int, a float64 node)."""

    islands: dict[ir.Node, str]
    clamps: dict[ir.Value, tuple[float, str]]


def decide(graph: Graph, half: HalfType) -> Decision:
    """Walk the graph once for the nodes that must be islands, then grow each island over its own arithmetic."""
    nodes = list(graph.model.graph.all_nodes())
    islands: dict[ir.Node, str] = {}
    clamps: dict[ir.Value, tuple[float, str]] = {}
    for node in nodes:
        if (reason := _reason(node, graph, half, clamps)) is not None:
            islands[node] = reason
    _count(nodes, islands)
    _grow(nodes, islands)
    return Decision(islands, clamps)


def _reason(node: ir.Node, graph: Graph, half: HalfType, clamps: dict[ir.Value, tuple[float, str]]) -> str | None:
    floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == FLOAT]
    if not floats:
        return ""
    if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype != FLOAT:
        return ""  # integers are cast to float32 first: a count above 2048 is not a float16 number
    if node.op_type == "Constant":
        return ""
    if node.graph is not graph.model.graph:
        return "inside the body of a control-flow node"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return "control flow"
    if node.op_type in REDUCTIONS:
        return "sums in float32"
    if node.op_type in RANGE:
        return "its result can leave the range of the type"
    if not _takes(node, graph, half):
        return f"ONNX gives {node.op_type} no {half.dtype.name.lower()} form"
    return _constant_reason(node, half, clamps)


def _takes(node: ir.Node, graph: Graph, half: HalfType) -> bool:
    """Whether the operator's schema admits the type at every float place of this node."""
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
        if high > half.max or low < -half.max:
            if high <= half.max and _reaches_softmax(value):
                clamps[value] = (low, f"mask constant {low:g} is outside {half.mode}; {half.mask:g} gives the same softmax")
                continue
            return f"constant {value.name!r} reaches {high if high > half.max else low:g}, outside {half.mode}"
        if value.const_value.size == 1 and 0 < smallest < half.tiny:
            return f"constant {value.name!r} = {smallest:g} is zero in {half.mode}"
    return None


def _extremes(tensor: ir.TensorProtocol) -> tuple[float, float, float]:
    """(min, max, smallest nonzero magnitude of a scalar) of a tensor."""
    array = tensor.numpy()
    if array.size == 0:
        return 0.0, 0.0, 0.0
    smallest = float(np.abs(array).reshape(-1)[0]) if array.size == 1 else 0.0
    return float(array.min()), float(array.max()), smallest


def _reaches_softmax(value: ir.Value) -> bool:
    """Whether a constant only flows, through mask arithmetic, into operators that see its order and not its size."""
    frontier, seen, found = [value], {value}, False
    while frontier:
        for user, _ in frontier.pop().uses():
            if user.op_type in ORDER_ONLY:
                found = True
                continue
            if user.op_type not in MASK_PATH:
                return False
            fresh = [v for v in user.outputs if v not in seen]
            seen.update(fresh)
            frontier.extend(fresh)
    return found


def _count(nodes: list[ir.Node], islands: dict[ir.Node, str]) -> None:
    """What goes back to integers, as how many frames so many samples make: 5 s of audio are more samples than 65504."""
    counted: set[ir.Value] = set()
    for node in reversed(nodes):
        back = node.op_type == "Cast" and node.outputs[0].dtype is not None and node.outputs[0].dtype.is_integer()
        inside = node.op_type in ELEMENTWISE | ROUNDS and any(value in counted for value in node.outputs)
        floats = [v for v in node.inputs if v is not None and v.dtype == FLOAT and not v.is_initializer()]
        if floats and (back or inside):
            counted.update(floats)
            islands[node] = islands.get(node) or COUNTED


def _grow(nodes: list[ir.Node], islands: dict[ir.Node, str]) -> None:
    """Arithmetic whose every float operand comes out of an island belongs to it, and so does a division by one.

    A cast down and up again between them would only lose digits (sqrt(variance + 1e-12) is zero in float16).
    """
    for node in nodes:
        if node in islands or node.op_type not in ELEMENTWISE:
            continue
        operands = [v for v in node.inputs if v is not None and v.dtype == FLOAT and not v.is_initializer()]
        inside = {v: islands[p] for v in operands if (p := v.producer()) is not None and p in islands}
        divisor = node.op_type == "Div" and node.inputs[1] in inside
        if operands and (all(v in inside for v in operands) or divisor) and any(inside.values()):
            islands[node] = GROWN
    for node in reversed(nodes):
        # What only moves values to readers outside does it in half: the cast goes before it.
        if (
            islands.get(node) == GROWN
            and node.op_type in MOVES
            and not any(u in islands for v in node.outputs for u, _ in v.uses())
        ):
            del islands[node]
