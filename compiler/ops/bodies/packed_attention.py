"""FusedPackedAttention: FusedAttention, or FusedRotaryAttention, of a batch without padding.

FusedPackedAttention(x [1,T,H], mask?, Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?, tokens [T], ends [B+1], grid [B,S],
                     cos [1|B,1,S,d]?, sin [1|B,1,S,d]?; num_heads, scale) -> [1,T,N]

`tokens` and `ends` are those of a FusedPackedLayout of a mask of `grid`'s shape; of `grid` only the shape counts. The mask (it is
added, and broadcasts to [B,h,S,S]), cos and sin are those of the padded batch. The lowerings read a mask by position in the row,
so one that differs between queries wants a layout with `from_start`. Here: every token at its position of the padded
batch again, and what is no token of a row unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph import MASK_LOW
from ..builder import constant, head_count, merge_heads, scaled_dot_product, split_heads
from ..declared import given_inputs
from .rotary import rotate

OP = "FusedPackedAttention"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, wqkv, bqkv, wo, bo, tokens, _, grid, cos, sin = given_inputs(node, 11)
    zero, shape, places = constant(op, [0], np.int64), op.Shape(grid), op.Unsqueeze(tokens, constant(op, [1], np.int64))

    def padded(packed: ir.Value) -> ir.Value:
        """[1,T,h,d] as [B,h,S,d], zeros where there is no token."""
        size = op.Shape(packed, start=2)
        empty = op.Expand(constant(op, 0.0), op.Concat(op.ReduceProd(shape), size, axis=0))
        filled = op.ScatterND(empty, places, op.Squeeze(packed, zero))
        return op.Transpose(op.Reshape(filled, op.Concat(shape, size, axis=0)), perm=[0, 2, 1, 3])

    q, k, v = (padded(part) for part in split_heads(op, x, wqkv, bqkv, head_count(node), 3))
    if cos is not None:
        q, k = rotate(op, q, cos, sin), rotate(op, k, cos, sin)
    seen = op.Where(_there(op, tokens, places, shape), constant(op, 0.0) if mask is None else mask, constant(op, MASK_LOW))
    k_t = op.Transpose(k, perm=[0, 1, 3, 2])
    context = scaled_dot_product(op, q, k_t, v, seen, node.attributes.get_float("scale", 1.0))
    flat = op.Reshape(
        op.Transpose(context, perm=[0, 2, 1, 3]),
        op.Concat(constant(op, [-1], np.int64), op.Shape(v, start=1, end=2), op.Shape(v, start=3), axis=0),
    )
    kept = op.Transpose(op.Unsqueeze(op.Gather(flat, tokens), zero), perm=[0, 2, 1, 3])
    return [merge_heads(op, kept, wo, bo)]


def _there(op: Any, tokens: ir.Value, places: ir.Value, shape: ir.Value) -> ir.Value:
    """[B,1,1,S] bool: which positions hold a token."""
    none = op.Expand(constant(op, False, np.bool_), op.ReduceProd(shape))
    there = op.ScatterND(none, places, op.Expand(constant(op, True, np.bool_), op.Shape(tokens)))
    return op.Unsqueeze(op.Reshape(there, shape), constant(op, [1, 2], np.int64))
