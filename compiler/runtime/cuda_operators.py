"""Operators of com.microsoft that only the CUDA provider has, as standard ONNX, so that what they mean can be run on a CPU.

    RemovePadding(x [B,S,H], counts [B]) -> tokens [T,H], token_offset [B,S], ends [B+1], longest [1]
    PackedAttention(x [T,H], W, b, token_offset [B,S], ends [B+1], bias?) -> [T,h*d]
    PackedMultiHeadAttention(q [T,h*d], k, v, b?, token_offset [B,S], ends [B+1], bias?) -> [T,h*d]

They are what the kernel without fusion computes, which reads all of its inputs: a token lies where `token_offset` says, a row's
keys are its first ends[i+1] - ends[i] positions, and positions without a token are not zero but the biases of the projections.
`scale` 0 is 1 / sqrt(d). Other kernels of the same operator read `ends` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import InputError
from ..graph import MASK_LOW
from ..ops import check_attributes, constant, given_inputs, replace_node, taken_names

DOMAIN = "com.microsoft"


def spell_cuda_operators(model: ir.Model) -> None:
    """In place: these operators as standard ONNX."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in BODIES]
    taken = taken_names(model) if nodes else set()
    for node in nodes:
        check_attributes(node)
        replace_node(model, node, BODIES[node.op_type], taken)


def remove_padding(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """The first `counts` tokens of each row."""
    x, counts = given_inputs(node, 2, 2)
    grid = op.Shape(x, start=0, end=2)
    inside = op.Reshape(_before(op, counts, _at(op, grid, 1)), _ints(op, -1))
    places = [op.Squeeze(op.NonZero(each), _ints(op, 0)) for each in (inside, op.Not(inside))]
    flat = op.Reshape(x, op.Concat(_ints(op, -1), op.Shape(x, start=2), axis=0))
    offset = op.Cast(op.Reshape(op.Concat(*places, axis=0), grid), to=ir.DataType.INT32)
    ends = op.Concat(constant(op, [0], np.int32), op.CumSum(counts, _ints(op, 0)), axis=0)
    return [op.Gather(flat, places[0]), offset, ends, op.ReduceMax(counts, _ints(op, 0), keepdims=1)]


def packed_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """Projected first."""
    x, w, b, offset, ends, bias = given_inputs(node, 6)
    if "qkv_hidden_sizes" in node.attributes:
        raise InputError("it has qkv_hidden_sizes, which bertc does not read")
    parts = op.Split(op.MatMul(x, w), axis=1, num_outputs=3, _outputs=3)
    return [_attended(op, node, parts, b, offset, ends, bias)]


def packed_multi_head_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """Of projections that lie apart."""
    q, k, v, b, offset, ends, bias = given_inputs(node, 7)
    return [_attended(op, node, [q, k, v], b, offset, ends, bias)]


def _attended(
    op: Any, node: ir.Node, parts: Sequence[ir.Value], b: Any, offset: ir.Value, ends: ir.Value, bias: Any
) -> ir.Value:  # fmt: skip
    heads, scale = node.attributes.get_int("num_heads", 0), node.attributes.get_float("scale", 0.0)
    grid, count = op.Shape(offset), op.Shape(parts[0], start=0, end=1)
    places = op.Slice(op.Reshape(op.Cast(offset, to=ir.DataType.INT64), _ints(op, -1)), _ints(op, 0), count, _ints(op, 0))
    biases = [None] * 3 if b is None else op.Split(b, axis=0, num_outputs=3, _outputs=3)
    by_head = op.Concat(grid, _ints(op, heads, -1), axis=0)

    def padded(part: ir.Value, own: Any) -> ir.Value:
        """[T,h*d] as [B,h,S,d]."""
        width = op.Shape(part, start=1)
        filled = op.ScatterND(
            op.Expand(constant(op, 0.0), op.Concat(op.ReduceProd(grid), width, axis=0)), op.Unsqueeze(places, _ints(op, 1)), part
        )
        return op.Transpose(op.Reshape(filled if own is None else op.Add(filled, own), by_head), perm=[0, 2, 1, 3])

    q, k, v = (padded(part, own) for part, own in zip(parts, biases, strict=True))
    size = op.Cast(op.Shape(q, start=3), to=ir.DataType.FLOAT)
    scores = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, constant(op, scale)) if scale else op.Div(scores, op.Sqrt(size))
    scores = scores if bias is None else op.Add(scores, bias)
    lengths = op.Sub(op.Slice(ends, _ints(op, 1), op.Shape(ends), _ints(op, 0)), op.Slice(ends, _ints(op, 0), _ints(op, -1)))
    seen = op.Unsqueeze(_before(op, lengths, _at(op, grid, 1)), _ints(op, 1, 2))
    weights = op.Softmax(op.Where(seen, scores, constant(op, MASK_LOW)), axis=-1)
    context = op.Transpose(op.MatMul(weights, v), perm=[0, 2, 1, 3])
    return op.Gather(op.Reshape(context, op.Concat(op.ReduceProd(grid), op.Shape(parts[2], start=1), axis=0)), places)


def _before(op: Any, counts: ir.Value, length: ir.Value) -> ir.Value:
    """[B,S] bool: the positions before counts [B]."""
    positions = op.Range(constant(op, 0, np.int64), length, constant(op, 1, np.int64))
    return op.Less(op.Unsqueeze(positions, _ints(op, 0)), op.Unsqueeze(op.Cast(counts, to=ir.DataType.INT64), _ints(op, 1)))


def _at(op: Any, shape: ir.Value, axis: int) -> ir.Value:
    return op.Gather(shape, constant(op, axis, np.int64))


def _ints(op: Any, *values: int) -> ir.Value:
    return constant(op, list(values), np.int64)


BODIES = {
    "RemovePadding": remove_padding,
    "PackedAttention": packed_attention,
    "PackedMultiHeadAttention": packed_multi_head_attention,
}
