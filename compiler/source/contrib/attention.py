"""Attention and MultiHeadAttention: projections (or none), masks of every form, past keys and values, a bias of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ...ops import add_all, constant, padded_inputs
from ._masks import score_mask
from ._pieces import integers, rank, refuse_flags, size

ROWS, COLUMNS = (0, 2, 1, 3), (0, 2, 3, 1)  # [B,S,h,d] to [B,h,S,d], and to [B,h,d,S]
SWAPPED = (0, 1, 3, 2)


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(x, W, bias?, mask?, past?, score bias?; num_heads, scale, unidirectional, qkv_hidden_sizes) -> y, present?"""
    refuse_flags(node, "do_rotary", "past_present_share_buffer")
    x, weight, bias, mask, past, score_bias, *_ = padded_inputs(node, 7)
    heads = node.attributes.get_int("num_heads")
    parts = _parts(op, node, x, weight, bias)
    q, k, v = (_split(op, part, heads) for part in parts)
    queries = op.Transpose(q, perm=ROWS)
    if past is None and len(node.outputs) < 2:
        turned = (queries, op.Transpose(k, perm=COLUMNS), op.Transpose(v, perm=ROWS))
        return [_attend(op, node, turned, mask, score_bias, size(op, x, 1))]
    keys, values = (op.Transpose(value, perm=ROWS) for value in (k, v))
    if past is not None:
        old = op.Split(past, axis=0, num_outputs=2, _outputs=2)
        keys, values = (
            op.Concat(op.Squeeze(o, integers(op, 0)), new, axis=2) for o, new in zip(old, (keys, values), strict=True)
        )
    y = _attend(op, node, (queries, op.Transpose(keys, perm=SWAPPED), values), mask, score_bias, size(op, keys, 2))
    return [y, op.Concat(*(op.Unsqueeze(value, integers(op, 0)) for value in (keys, values)), axis=0)]


def _parts(op: Any, node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> list[ir.Value]:
    """x W + b for queries, keys and values [B,S,h*d]. Constant weights are cut, so that three projections stand there."""
    constants: list[Any] = [value.const_value for value in (weight, bias) if value is not None]
    if any(tensor is None for tensor in constants):
        raise InputError("its weights or its bias are not constant")
    matrix = constants[0].numpy()
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", [matrix.shape[1] // 3] * 3))
    cuts = [sizes[0], sizes[0] + sizes[1]]
    vectors = np.split(constants[1].numpy(), cuts) if bias is not None else [None] * 3
    made = []
    for name, columns, vector in zip("qkv", np.split(matrix, cuts, axis=1), vectors, strict=True):
        w = op.initializer(ir.tensor(np.ascontiguousarray(columns)), name=f"{name}.weight")
        b = None if vector is None else op.initializer(ir.tensor(vector.copy()), name=f"{name}.bias")
        made.append(add_all(op, op.MatMul(x, w), b))
    return made


def _split(op: Any, value: ir.Value, heads: int) -> ir.Value:
    """[B,S,h*d] to [B,S,h,d]."""
    return op.Reshape(value, integers(op, 0, 0, heads, -1))


def _attend(
    op: Any, node: ir.Node, parts: Sequence[ir.Value], mask: ir.Value | None, bias: ir.Value | None, keys: ir.Value
) -> ir.Value:
    """softmax(q k_t * scale + (mask + bias)) v, the heads side by side. Parts: q [B,h,S,d], k_t [B,h,d,T], v [B,h,T,d]; `keys` is
    T as a vector, not read off k_t, which has no other reader where it is fused."""
    q, k_t, v = parts
    x = node.inputs[0]
    assert x is not None
    scores = op.Mul(op.MatMul(q, k_t), _scale(op, node, q))
    masked = score_mask(op, node, mask, size(op, x, 0), size(op, x, 1), keys)
    added = [term for term in (masked, bias) if term is not None]
    scores = op.Add(scores, add_all(op, *added)) if added else scores  # in this order: float32 has three digits beside -10000
    context = op.MatMul(op.Softmax(scores, axis=-1), v)
    return op.Reshape(op.Transpose(context, perm=ROWS), integers(op, 0, 0, -1))


def _scale(op: Any, node: ir.Node, q: ir.Value) -> ir.Value:
    """`scale`, else 1/sqrt(d): a number where the size of a head is known."""
    if scale := node.attributes.get_float("scale", 0.0):
        return constant(op, scale)
    width = _width(node)
    if width is not None:
        return constant(op, 1 / math.sqrt(width))
    return op.Reciprocal(op.Sqrt(op.Cast(size(op, q, 3), to=int(ir.DataType.FLOAT))))


def _width(node: ir.Node) -> int | None:
    heads = node.attributes.get_int("num_heads")
    if node.op_type == "Attention":
        columns = node.inputs[1].const_value.shape.numpy()[1]  # type: ignore[union-attr]
        return int(node.attributes.get_ints("qkv_hidden_sizes", [columns // 3])[0] // heads)
    query = node.inputs[0]
    last = query.shape[-1] if query is not None and query.shape is not None else None
    if not isinstance(last, int):
        return None
    return last // heads


def multi_head_attention(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(q, k?, v?, bias?, mask?, score bias?, past k?, past v?; num_heads, scale, unidirectional) -> y, present k?, present v?"""
    query, key, _, bias, mask, score_bias, past_k, past_v, *rest = padded_inputs(node, 10)
    if any(value is not None for value in rest):
        raise InputError("a past of shared buffers (past_sequence_length, cache_indirection) has no expansion")
    if mask is not None and rank(mask) == 1 and _is_packed_mask(mask, query):
        raise InputError("a mask of lengths and offsets (3B+2) has no expansion")
    q, k, v = _separate(op, node, bias)
    if past_k is not None:
        k, v = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    known = past_k is None and key is not None and rank(key) == 3
    length = size(op, key, 1) if known else size(op, k, 2)
    y = _attend(op, node, (q, op.Transpose(k, perm=SWAPPED), v), mask, score_bias, length)
    return [y, k, v] if len(node.outputs) > 1 else [y]


def _is_packed_mask(mask: ir.Value, query: ir.Value) -> bool:
    length, batch = (value.shape[0] if value.shape is not None else None for value in (mask, query))
    return isinstance(length, int) and isinstance(batch, int) and length == 3 * batch + 2


def _separate(op: Any, node: ir.Node, bias: ir.Value | None) -> list[ir.Value]:
    """Queries, keys and values [B,h,S,d]. Packed ones have no kernel on the CPU, so nothing says what they mean."""
    query, key, value = padded_inputs(node, 3)[:3]
    heads = node.attributes.get_int("num_heads")
    if key is None or 5 in (rank(query), rank(key)):
        raise InputError("packed queries, keys or values have no expansion")
    parts = _biases(op, node, bias)
    q = op.Transpose(_split(op, add_all(op, query, parts[0]), heads), perm=ROWS)
    if rank(key) == 4:  # of a cross attention, whose keys were computed before
        return [q, key, value]
    apart = ((key, parts[1]), (value, parts[2]))
    return [q, *(op.Transpose(_split(op, add_all(op, x, b), heads), perm=ROWS) for x, b in apart)]


def _biases(op: Any, node: ir.Node, bias: ir.Value | None) -> list[ir.Value | None]:
    if bias is None:
        return [None] * 3
    if bias.const_value is None:
        raise InputError("its bias is not constant")
    query, vector = node.inputs[0], bias.const_value.numpy()
    last = query.shape[-1] if query is not None and query.shape is not None else None
    width = last if isinstance(last, int) else len(vector) // 3
    return [
        op.initializer(ir.tensor(part.copy()), name=f"{name}.bias")
        for name, part in zip("qkv", np.split(vector, [width, 2 * width]), strict=True)
    ]


BODIES = {"Attention": attention, "MultiHeadAttention": multi_head_attention}
