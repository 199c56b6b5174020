"""Q/DQ pairs of another tool in the form that TensorRT takes: symmetric int8, biases in float.

TensorRT reads no zero point but 0, and no int32: a bias stored as int32 is the float32 bias it stands for.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..core import NotFused
from ..graph import Graph, infer_shapes, upgrade_opset
from .quantised_activations import quantised_operators
from .stored_weights import fold_value, stored_constants

PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def why_not_carried(graph: Graph) -> str:
    """Why TensorRT cannot take the quantisation of a graph as it is; "" where it can, or where there is none."""
    others = [name for name in quantised_operators(graph.model) if name not in PAIRS]
    if others:
        return f"{', '.join(others[:3])} have no form there"
    for node in graph.model.graph.all_nodes():
        if node.op_type in PAIRS and (why := _fault(node)):
            return f"{node.op_type} {node.name!r} {why}"
    return ""


def _fault(node: ir.Node) -> str:
    if node.domain not in ("", "ai.onnx"):
        return "is of com.microsoft"
    read = None if node.inputs[0] is None else node.inputs[0].const_value
    if read is not None and read.dtype == ir.DataType.INT32:
        return ""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return "" if read is not None and read.dtype == ir.DataType.INT8 else "has no zero point: it is uint8"
    tensor = ir.convenience.get_const_tensor(zero)
    if tensor is None:
        return "has a zero point that is no constant"
    if tensor.dtype != ir.DataType.INT8:
        return f"is {tensor.dtype.name.lower()}, not int8"
    return "has a zero point other than 0" if np.any(tensor.numpy()) else ""


def carry_quantisation(graph: Graph) -> Graph:
    """A copy with a type of every value, whose int32 biases are float32; the graph itself where nothing is quantised.

    Of a newer opset where onnx's converter can: before opset 19 the scales of a pair, and what it gives back, are float32 alone.
    """
    if not quantised_operators(graph.model):
        return graph
    try:
        copy = upgrade_opset(graph).graph.copy()
    except NotFused:
        copy = graph.copy()
    infer_shapes(copy.model)
    constants = stored_constants(copy.model)
    pairs = [node for node in copy.model.graph if node.op_type == "DequantizeLinear" and node.inputs[0] in constants]
    for node in pairs:
        if _is_int32(node.inputs[0]):
            fold_value(copy.model, node.outputs[0])
    ir.passes.common.RemoveUnusedNodesPass()(copy.model)
    return copy


def _is_int32(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.dtype == ir.DataType.INT32
