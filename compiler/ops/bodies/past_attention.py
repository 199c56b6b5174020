"""FusedPastAttention: attention of new tokens to a cache and to themselves; the cache grows by their keys and values.

FusedPastAttention(x [B,S,H], mask?, past_k [B,h,P,d], past_v [B,h,P,d], Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?;
                   num_heads, scale) -> [B,S,N], present_k [B,h,P+S,d], present_v [B,h,P+S,d]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import add_all, constant, padded_inputs, scaled_dot_product

OP = "FusedPastAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, past_k, past_v, wqkv, bqkv, wo, bo = padded_inputs(node, 8)
    heads = node.attributes.get_int("num_heads")
    if not heads:
        raise InputError(f"FusedPastAttention {node.name!r} has no attribute num_heads")
    packed = op.Reshape(add_all(op, op.MatMul(x, wqkv), bqkv), constant(op, [0, 0, 3 * heads, -1], np.int64))
    q, k, v = (op.Transpose(t, perm=[0, 2, 1, 3]) for t in op.Split(packed, axis=2, num_outputs=3, _outputs=3))
    keys, values = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    k_t = op.Transpose(keys, perm=[0, 1, 3, 2])
    context = op.Transpose(
        scaled_dot_product(op, q, k_t, values, mask, node.attributes.get_float("scale", 1.0)), perm=[0, 2, 1, 3]
    )
    merged = op.Reshape(context, constant(op, [0, 0, -1], np.int64))
    return [add_all(op, op.MatMul(merged, wo), bo), keys, values]
