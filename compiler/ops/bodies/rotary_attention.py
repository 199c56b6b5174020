"""FusedRotaryAttention: FusedAttention whose queries and keys are rotated by their places before they meet.

FusedRotaryAttention(x [B,S,H], mask?, cos [1|B,1,S,d], sin [1|B,1,S,d], Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?;
                     num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import add_all, constant, padded_inputs, scaled_dot_product
from .rotary import rotate

OP = "FusedRotaryAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, cos, sin, wqkv, bqkv, wo, bo = padded_inputs(node, 8)
    heads = node.attributes.get_int("num_heads")
    if not heads:
        raise InputError(f"FusedRotaryAttention {node.name!r} has no attribute num_heads")
    packed = op.Reshape(add_all(op, op.MatMul(x, wqkv), bqkv), constant(op, [0, 0, 3 * heads, -1], np.int64))
    parts = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    q, k, v = (op.Transpose(part, perm=[0, 2, 1, 3]) for part in parts)
    q, k_t = rotate(op, q, cos, sin), op.Transpose(rotate(op, k, cos, sin), perm=[0, 1, 3, 2])
    context = op.Transpose(scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0)), perm=[0, 2, 1, 3])
    return [add_all(op, op.MatMul(op.Reshape(context, constant(op, [0, 0, -1], np.int64)), wo), bo)]
