"""Rewrites of the whole lowered graph for TensorRT: borders between layouts taken out, pooling without what cancels.

`tidy` moves each swap of batch and length ([B,S,H] <-> [S,B,H]) towards the outputs, through operators that work on either
layout, until it meets its opposite or a reduction over the length, which takes the other axis instead. Every step is exact.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graph import Graph, drop_unused_initializers, eliminate_identities, restore_io
from .lower_common import SWAP

UNARY = frozenset("Gelu Erf Tanh Sigmoid Relu Cast Identity Neg Abs Sqrt Exp".split())
BINARY = frozenset("Add Sub Mul Div Pow".split())
BY_CHANNELS = frozenset("LayerNormalization MatMul Add Transpose".split())
PICKS = frozenset(["Gather"])
REDUCES = frozenset("ReduceSum ReduceMean ReduceMax ReduceMin".split())
# A clamp of a norm this small stands in for zero: what it is compared with may be scaled by a count of tokens.
TINY_CLAMP = 1e-6


def tidy(graph: Graph) -> Graph:
    """A copy with pooling simplified and every needless swap gone."""
    copy = graph.copy()
    main = copy.model.graph
    drop_count(main)
    drop_expands(main)
    _turn_once(main)
    for node in list(main):
        _cancel(node)
        _swap_later(main, node)
    for index, value in enumerate(main.outputs):
        _cancel_output(main, index, value)
    RemoveUnusedNodesPass()(copy.model)
    eliminate_identities(copy.model)
    drop_unused_initializers(main)
    restore_io(copy.model, graph.model)
    return copy


def _turn_once(graph: ir.Graph) -> None:
    """What convolutions made as [B,C,T] and is turned to [B,T,C] goes to [T,B,C] first: the encoder behind it runs length-first.

    The swap that is left then moves on as any other; where none meets it, the compiler makes one transposition of the two.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or tuple(node.attributes.get_ints("perm", [])) != (0, 2, 1):
            continue
        out, users = node.outputs[0], list(node.outputs[0].uses())
        if out.is_graph_output() or not any(user.op_type in BY_CHANNELS for user, _ in users):
            continue
        shape = out.shape
        node.attributes["perm"] = ir.AttrInt64s("perm", (2, 0, 1))
        out.shape = _exchanged(shape)
        behind = _swap(graph, out, node, before=False)
        behind.shape = shape
        for user, index in users:
            user.replace_input_with(index, behind)


def _swapped(value: ir.Value | None) -> ir.Value | None:
    """What a value is the swap of, or None."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "Transpose" or "perm" not in maker.attributes:
        return None
    return maker.inputs[0] if tuple(maker.attributes["perm"].as_ints()) == SWAP else None


def _cancel(node: ir.Node) -> None:
    """Let a node read past two swaps that undo each other."""
    for index, value in enumerate(node.inputs):
        while (source := _swapped(_swapped(value))) is not None:
            node.replace_input_with(index, source)
            value = source


def _cancel_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    source = _swapped(_swapped(value))
    if source is None or source.is_graph_input() or source.is_graph_output():
        return
    value.name, source.name = f"{value.name}.swapped", value.name
    source.shape = value.shape
    graph.outputs[index] = source


def _swap_later(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node read what was there before the swap, and swap behind it where its output still needs it."""
    if node.op_type == "Transpose" or not any(_swapped(value) is not None for value in node.inputs):
        return
    if node.op_type in PICKS or node.op_type in REDUCES:
        _take_other_axis(graph, node)
    elif _either_layout(node):
        _move_behind(graph, node)


def _either_layout(node: ir.Node) -> bool:
    first, *rest = node.inputs
    if node.op_type in UNARY:
        return True
    if node.op_type in BINARY:
        return all(_fits(value) for value in node.inputs)
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get_int("axis", -1)
        return _swapped(first) is not None and axis in (-1, 2) and len(node.outputs) == 1
    return node.op_type == "MatMul" and _swapped(first) is not None and _rank(rest[0]) == 2


def _fits(value: ir.Value | None) -> bool:
    """An operand that is swapped already, is the same in both layouts, or is small enough to be swapped (a mask column)."""
    if value is None or _swapped(value) is not None:
        return True
    rank = _rank(value)
    return rank in (0, 1) or (rank == 3 and value.shape is not None and value.shape[2] == 1)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else -1


def _move_behind(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        source = _swapped(value)
        if source is not None:
            node.replace_input_with(index, source)
        elif value is not None and _rank(value) == 3:
            node.replace_input_with(index, _swap(graph, value, node, before=True))
    out = node.outputs[0]
    users = list(out.uses())
    behind = _swap(graph, out, node, before=False)
    for user, index in users:
        user.replace_input_with(index, behind)
    for index, output in enumerate(graph.outputs):
        if output is out:
            out.name, behind.name = f"{out.name}.swapped", out.name
            graph.outputs[index] = behind
    # The swap keeps the shape that was known; what the node makes now has its two first dimensions exchanged.
    behind.shape = out.shape
    out.shape = _exchanged(out.shape)


def _swap(graph: ir.Graph, value: ir.Value, near: ir.Node, before: bool) -> ir.Value:
    """A new Transpose of a value, before or behind a node; named after both."""
    node = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", SWAP)], name=f"{near.name}/swap_{value.name}")
    node.metadata_props.update(near.metadata_props)
    made = node.outputs[0]
    made.name, made.type, made.shape = f"{node.name}.out", value.type, _exchanged(value.shape)
    (graph.insert_before if before else graph.insert_after)(near, node)
    return made


def _exchanged(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[1], shape[0], *list(shape)[2:]])


def _take_other_axis(graph: ir.Graph, node: ir.Node) -> None:
    """Gather or reduce over the length where it now is; with keepdims the swap is needed behind it, and nothing is gained."""
    source = _swapped(node.inputs[0])
    if source is None:
        return
    if node.op_type in PICKS:
        scalar = _rank(node.inputs[1]) == 0
        if scalar and node.attributes.get_int("axis", 0) == 1:
            node.attributes["axis"] = ir.AttrInt64("axis", 0)
            node.replace_input_with(0, source)
        return
    if node.attributes.get_int("keepdims", 1) or len(node.inputs) < 2 or _numbers(node.inputs[1]) != [1]:
        return
    axes = ir.Value(name=f"{node.name}/axes", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    axes.const_value = ir.tensor(np.array([0], np.int64), name=axes.name)
    graph.register_initializer(axes)
    node.replace_input_with(0, source)
    node.replace_input_with(1, axes)


def _numbers(value: ir.Value | None) -> list[float] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None or tensor.size > 8 else [n.item() for n in tensor.numpy().reshape(-1)]


def drop_count(graph: ir.Graph) -> None:
    """normalise(sum / count) is normalise(sum): the division by the number of tokens goes, and with it the counting.

    Exact unless a norm is under its clamp times the count, where only a vector of zeros, which stays zero, is found in practice.
    """
    for node in list(graph):
        if node.op_type != "Div" or not _is_normalised(node.outputs[0]):
            continue
        total, count = node.inputs
        if _positive(count) and count is not None and count.shape is not None and count.shape[-1] == 1 and total is not None:
            node.outputs[0].replace_all_uses_with(total)


def drop_expands(graph: ir.Graph) -> None:
    """An Expand to the very shape of what it is combined with does what broadcasting does, in a kernel of its own."""
    for node in list(graph):
        if node.op_type != "Expand" or node.outputs[0].is_graph_output():
            continue
        users, whole = list(node.outputs[0].uses()), node.inputs[0]
        if whole is None:
            continue
        if users and all(
            user.op_type in BINARY and _same_shape(node.outputs[0], user.inputs[1 - index]) for user, index in users
        ):
            node.outputs[0].replace_all_uses_with(whole)


def _same_shape(a: ir.Value, b: ir.Value | None) -> bool:
    """Whether two shapes are known to be equal: sizes, or dimensions of one name."""
    if a is b or b is None or a.shape is None or b.shape is None:
        return False
    sizes = [d if isinstance(d, int) else d.value for d in (*a.shape, *b.shape)]
    return None not in sizes and sizes[: len(a.shape)] == sizes[len(a.shape) :]


def _is_normalised(value: ir.Value) -> bool:
    """Whether a value is only ever divided by its own length: x / Clip(ReduceL2(x), tiny)."""
    users = [(user, index) for user, index in value.uses()]
    norms = [user for user, _ in users if user.op_type == "ReduceL2" and user.attributes.get_int("keepdims", True)]
    divisions = [user for user, index in users if user.op_type == "Div" and index == 0]
    if value.is_graph_output() or len(norms) != 1 or len(divisions) != 1 or len(users) != 2:
        return False
    if _numbers((*norms[0].inputs, None)[1]) not in ([-1], [1]) or _rank(value) != 2:
        return False
    return _reaches(norms[0].outputs[0], divisions[0])


def _reaches(norm: ir.Value, division: ir.Node) -> bool:
    """norm -> Clip(tiny) or Max(tiny) [-> Expand] -> the divisor, and nothing else reads it."""
    value, clamped = norm, False
    while division.inputs[1] is not value:
        users = list(value.uses())
        if len(users) != 1 or value.is_graph_output():
            return False
        user = users[0][0]
        if user.op_type in ("Clip", "Max"):
            low = _numbers((*user.inputs, None)[1])
            clamped = low is not None and len(low) == 1 and 0 < low[0] <= TINY_CLAMP
            if not clamped or (user.op_type == "Clip" and len(user.inputs) > 2 and user.inputs[2] is not None):
                return False
        elif user.op_type not in ("Expand", "Identity"):
            return False
        value = user.outputs[0]
    return len(list(value.uses())) == 1


def _positive(value: ir.Value | None) -> bool:
    """Whether a divisor is known to be over zero: it was clamped from below."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type not in ("Clip", "Max"):
        return False
    low = _numbers((*maker.inputs, None)[1])
    return low is not None and len(low) == 1 and math.isfinite(low[0]) and low[0] > 0
