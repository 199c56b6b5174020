"""FusedAttention: one projection to 3h heads, cut in three, which TensorRT makes one kernel of (8 a layer).

FusedAttention(x [B,S,H], mask?, Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?; num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import head_count, merge_heads, scaled_dot_product, split_heads
from ..declared import given_inputs

OP = "FusedAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, wqkv, bqkv, wo, bo = given_inputs(node, 6)
    q, k, v = split_heads(op, x, wqkv, bqkv, head_count(node), 3)
    q, k_t, v = (op.Transpose(t, perm=perm) for t, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    context = scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0))
    return [merge_heads(op, context, wo, bo)]
