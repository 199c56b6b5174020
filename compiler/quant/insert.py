"""Q/DQ pairs into a float32 graph: symmetric, zero-point 0, per-tensor activations, per-channel weights.

A pair stands in front of the GEMM it is for and nowhere else: never behind one, which would keep the compiler from fusing what
follows (reference: kernels, "Q/DQ placement"). Scales are float32 here; the pass that types the rest of the graph types them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import Graph, drop_unused_initializers
from .fit import Fitted
from .sites import ATTENTION, transposed

OPSET = 21  # from here on scales may be float16
FLOAT, INT8 = ir.DataType.FLOAT, np.dtype(np.int8)


def insert_qdq(graph: Graph, chosen: Iterable[Fitted]) -> Graph:
    """A copy in which the chosen sites read quantised values; unused float weights are gone from it."""
    copy = graph.copy()
    copy.model.opset_imports[""] = copy.model.graph.opset_imports[""] = max(OPSET, graph.opset)
    nodes = {str(node.name): node for node in copy.model.graph}
    for fitted in chosen:
        (_attention if fitted.site.kind == ATTENTION else _gemms)(copy.model.graph, nodes, fitted)
    drop_unused_initializers(copy.model.graph)
    return copy


def _gemms(graph: ir.Graph, nodes: dict[str, ir.Node], fitted: Fitted) -> None:
    first = nodes[fitted.site.nodes[0]]
    put = Writer(graph, first, fitted.site.name)
    value = first.inputs[0]
    if fitted.mul is not None:
        value = put.node("Mul", [value, put.constant("mul", fitted.mul)], value)
    if fitted.add is not None:
        value = put.node("Add", [value, put.constant("add", fitted.add)], value)
    read = put.pair(value, fitted.scales[0], next(iter(fitted.weights.values())).values.dtype)
    for name in fitted.site.nodes:
        node, weights = nodes[name], fitted.weights[name]
        node.replace_input_with(0, read)
        node.replace_input_with(1, dequantised(graph, node, weights.values, weights.scales))
        _add_bias(graph, node, weights.bias)


def dequantised(graph: ir.Graph, node: ir.Node, values: np.ndarray, scales: np.ndarray) -> ir.Value:
    """Stored weights behind a DequantizeLinear with a scale for each output channel."""
    put = Writer(graph, node, f"{node.name}/weight")
    held = put.constant("int8" if values.dtype == np.int8 else "fp8", values)
    zeros = put.constant("zero_point", np.zeros(len(scales), values.dtype))
    axis = ir.AttrInt64("axis", 0 if transposed(node) else 1)
    return put.node("DequantizeLinear", [held, put.constant("scale", scales), zeros], held, FLOAT, [axis])


def _add_bias(graph: ir.Graph, node: ir.Node, bias: np.ndarray) -> None:
    """Into the bias behind the GEMM where there is one of its own, else as a new sum."""
    if node.op_type == "Gemm" and len(node.inputs) > 2 and _is_bias(node.inputs[2], len(bias)):
        return node.replace_input_with(2, _summed(graph, node, node.inputs[2], bias))
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0][0].op_type == "Add" and _is_bias(users[0][0].inputs[1 - users[0][1]], len(bias)):
        add, index = users[0][0], 1 - users[0][1]
        return add.replace_input_with(index, _summed(graph, node, add.inputs[index], bias))
    put = Writer(graph, node, f"{node.name}/weight", after=True)
    out = node.outputs[0]
    made = put.node("Add", [out, put.constant("bias", bias)], out)
    for user, index in users:
        user.replace_input_with(index, made)
    # The sum takes the name: who looks for the GEMM's result by its name, as `gated` does, must not find the bare product.
    out.name, made.name = f"{out.name}.product", out.name
    for index, output in enumerate(graph.outputs):
        if output is out:
            graph.outputs[index] = made
    return None


def _is_bias(value: ir.Value | None, width: int) -> bool:
    tensor = value.const_value if value is not None else None
    return tensor is not None and tensor.size == width and tuple(tensor.shape)[-1:] == (width,)


def _summed(graph: ir.Graph, node: ir.Node, old: ir.Value, bias: np.ndarray) -> ir.Value:
    assert old.const_value is not None
    total = old.const_value.numpy().astype(np.float32) + bias.reshape(tuple(old.const_value.shape))
    return Writer(graph, node, f"{node.name}/weight").constant("bias", total)


def _attention(graph: ir.Graph, nodes: dict[str, ir.Node], fitted: Fitted) -> None:
    scores, context = (nodes[name] for name in fitted.site.nodes)
    operands = ((scores, 0), (scores, 1), (context, 0), (context, 1))
    for role, (node, index), scale in zip(("q", "k", "softmax", "v"), operands, fitted.scales, strict=True):
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, Writer(graph, node, f"{fitted.site.name}/{role}").pair(value, scale))


class Writer:
    """Makes nodes before (or behind) a node, and constants, all named after one site."""

    def __init__(self, graph: ir.Graph, near: ir.Node, name: str, *, after: bool = False) -> None:
        self.graph, self.near, self.name, self.after = graph, near, name, after

    def constant(self, role: str, array: object) -> ir.Value:
        name = f"{self.name}/{role}"
        tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: list[ir.Value | None],
        like: ir.Value,
        dtype: ir.DataType = FLOAT,
        attributes: Iterable[ir.Attr] = (),
    ) -> ir.Value:
        made = ir.Node("", op, inputs, list(attributes), name=f"{self.name}/{op}")
        made.metadata_props.update(self.near.metadata_props)
        value = made.outputs[0]
        value.name, value.shape, value.type = f"{made.name}.out", like.shape, ir.TensorType(dtype)
        (self.graph.insert_after if self.after else self.graph.insert_before)(self.near, made)
        return value

    def pair(self, value: ir.Value, scale: float, dtype: np.dtype[Any] = INT8) -> ir.Value:
        """QuantizeLinear and DequantizeLinear with one scale."""
        given = [self.constant("scale", np.float32(scale)), self.constant("zero_point", np.zeros((), dtype))]
        stored = self.node("QuantizeLinear", [value, *given], value, ir.DataType.from_numpy(dtype))
        return self.node("DequantizeLinear", [stored, *given], value)
