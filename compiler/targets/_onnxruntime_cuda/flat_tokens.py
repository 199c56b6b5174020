"""Packed tokens as [T, H] from end to end: the canonical [1, T, H] is taken off in front of each attention and put on behind it.

What works on rows of numbers works on either, so the Unsqueeze behind an attention moves towards the outputs until it meets the
Squeeze of the next, and both go. Every step is exact.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...ops import Builder, constant

ELEMENTWISE = frozenset("Add Sub Mul Div Pow Gelu Erf Tanh Sigmoid Relu Cast Identity Neg Abs Sqrt Exp".split())
# What works on the last axis of its first inputs, so many of them, the rest being weights; all take two dimensions or three.
BY_ROW = {
    ("", "MatMul"): 1,
    ("", "LayerNormalization"): 1,
    ("com.microsoft", "SkipLayerNormalization"): 2,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): 2,
    ("com.microsoft", "BiasGelu"): 1,
    ("com.microsoft", "FastGelu"): 1,
    ("com.microsoft", "QuickGelu"): 1,
}

BIASED = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}  # which input is the bias


def flatten_tokens(model: ir.Model) -> None:
    """Two dimensions wherever the operators between two attentions take them."""
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Squeeze" and node.inputs[0] is not None else None
        if source is not None and _is_first(source, "Unsqueeze") and _is_first(node, "Squeeze"):
            flat = source.inputs[0]
            assert flat is not None
            node.outputs[0].replace_all_uses_with(flat)
        elif any(_unsqueezed(value) is not None for value in node.inputs) and _by_row(node):
            _flatten(graph, node)
    RemoveUnusedNodesPass()(model)
    for node in list(graph):
        _take_bias(graph, node)
    RemoveUnusedNodesPass()(model)


def _take_bias(graph: ir.Graph, node: ir.Node) -> None:
    """The bias of the GEMM in front of a SkipLayerNormalization into it.

    In three dimensions ONNX Runtime does this itself. In two it makes a Gemm first, which copies the bias to every row before it.
    """
    at = BIASED.get(node.op_type) if node.domain == "com.microsoft" else None
    added = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if (
        at is None
        or any(value is not None for value in node.inputs[at:])
        or added is None
        or added.op_type != "Add"
        or added.domain
    ):
        return
    total, bias = added.inputs if _is_weights(added.inputs[1]) else added.inputs[::-1]
    if not _is_weights(bias) or len(added.outputs[0].uses()) > 1 or added.outputs[0].is_graph_output():
        return
    given = [total, *node.inputs[1:at]]
    given += [None] * (at - len(given)) + [bias]
    new = ir.Node(node.domain, node.op_type, given, list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name)
    new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)


def _is_weights(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.shape is not None and len(value.shape) == 1


def _is_first(node: ir.Node, kind: str) -> bool:
    """Whether a node takes the first axis off, or puts it on."""
    axes = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return node.op_type == kind and not node.domain and axes is not None and axes.numpy().tolist() == [0]


def _unsqueezed(value: ir.Value | None) -> ir.Value | None:
    """[T, H] where a value is that with one axis more."""
    maker = value.producer() if value is not None else None
    if maker is None or not _is_first(maker, "Unsqueeze") or value is None or value.shape is None or len(value.shape) != 3:
        return None
    return maker.inputs[0]


def _packed(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[0] == 1


def _by_row(node: ir.Node) -> bool:
    if any(value.is_graph_output() for value in node.outputs):
        return False
    if node.op_type in ELEMENTWISE and not node.domain:
        return all(_packed(value) or _is_vector(value) for value in node.inputs)
    count = BY_ROW.get((node.domain, node.op_type))
    if count is None or (node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 2)):
        return False
    return all(map(_packed, node.inputs[:count])) and all(v is None or v.const_value is not None for v in node.inputs[count:])


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) < 2


def _flatten(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if not _packed(value):
            continue
        assert value is not None
        maker = value.producer()
        assert maker is not None
        flat = _unsqueezed(value) or _squeezed(graph, value) or _first(graph, maker, "Squeeze", value)
        node.replace_input_with(index, flat)
    if node.op_type == "LayerNormalization":
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
    for out in (value for value in node.outputs if value.name):
        users = list(out.uses())
        shape = out.shape
        out.shape = None if shape is None else ir.Shape(shape.dims[1:])
        behind = _first(graph, node, "Unsqueeze", out)
        # A name stands for numbers: it goes to what still has them.
        behind.name, out.name, behind.shape = out.name, f"{out.name}/flat", shape
        for user, index in users:
            user.replace_input_with(index, behind)


def _squeezed(graph: ir.Graph, value: ir.Value) -> ir.Value | None:
    """The value without its first axis where another node has that, put where both may read it."""
    maker = value.producer()
    for user, _ in value.uses():
        if maker is not None and _is_first(user, "Squeeze") and user.graph is graph:
            axis = user.inputs[1].producer() if user.inputs[1] is not None else None
            moved = [user] if axis is None else [axis, user]
            graph.remove(moved)
            graph.insert_after(maker, moved)
            return user.outputs[0]
    return None


def _first(graph: ir.Graph, maker: ir.Node, kind: str, value: ir.Value) -> ir.Value:
    """A value without its first axis, or with one more, made behind the node that makes the value."""
    op = Builder()
    axis = constant(op, [0], np.int64)
    made = getattr(op, kind)(value, axis)
    axis.type, axis.shape, made.type = ir.TensorType(ir.DataType.INT64), ir.Shape([1]), value.type
    if kind == "Squeeze" and value.shape is not None:
        made.shape = ir.Shape(value.shape.dims[1:])
    for new in op.nodes:
        new.name = new.outputs[0].name = f"{value.name}/{kind}/{new.op_type}"
        new.metadata_props.update(maker.metadata_props)
    graph.insert_after(maker, op.nodes)
    return made
