"""FusedRotaryAttention: FusedAttention whose queries and keys are rotated by their places before they meet.

FusedRotaryAttention(x [B,S,H], mask?, cos [1|B,1,S,d], sin [1|B,1,S,d], Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?;
                     num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import head_count, merge_heads, scaled_dot_product, split_heads
from ..declared import given_inputs
from .rotary import rotate

OP = "FusedRotaryAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, cos, sin, wqkv, bqkv, wo, bo = given_inputs(node, 8)
    q, k, v = (op.Transpose(part, perm=[0, 2, 1, 3]) for part in split_heads(op, x, wqkv, bqkv, head_count(node), 3))
    q, k_t = rotate(op, q, cos, sin), op.Transpose(rotate(op, k, cos, sin), perm=[0, 1, 3, 2])
    context = scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0))
    return [merge_heads(op, context, wo, bo)]
