"""FusedPastAttention: attention of new tokens to a cache and to themselves; the cache grows by their keys and values.

FusedPastAttention(x [B,S,H], mask?, past_k [B,h,P,d], past_v [B,h,P,d], Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?;
                   num_heads, scale) -> [B,S,N], present_k [B,h,P+S,d], present_v [B,h,P+S,d]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import head_count, merge_heads, scaled_dot_product, split_heads
from ..declared import given_inputs

OP = "FusedPastAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, past_k, past_v, wqkv, bqkv, wo, bo = given_inputs(node, 8)
    q, k, v = (op.Transpose(t, perm=[0, 2, 1, 3]) for t in split_heads(op, x, wqkv, bqkv, head_count(node), 3))
    keys, values = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    k_t = op.Transpose(keys, perm=[0, 1, 3, 2])
    context = scaled_dot_product(op, q, k_t, values, mask, node.attributes.get_float("scale", 1.0))
    return [merge_heads(op, context, wo, bo), keys, values]
