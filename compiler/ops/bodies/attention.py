"""FusedAttention: one projection to 3h heads, cut in three, which TensorRT makes one kernel of (8 a layer).

FusedAttention(x [B,S,H], mask?, Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?; num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import add_all, constant, padded_inputs, scaled_dot_product

OP = "FusedAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, wqkv, bqkv, wo, bo = padded_inputs(node, 6)
    heads = node.attributes.get_int("num_heads")
    if not heads:
        raise InputError(f"FusedAttention {node.name!r} has no attribute num_heads")
    packed = op.Reshape(add_all(op, op.MatMul(x, wqkv), bqkv), constant(op, [0, 0, 3 * heads, -1], np.int64))
    q, k, v = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    q, k_t, v = (op.Transpose(t, perm=perm) for t, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    context = op.Transpose(scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0)), perm=[0, 2, 1, 3])
    merged = op.Reshape(context, constant(op, [0, 0, -1], np.int64))
    return [add_all(op, op.MatMul(merged, wo), bo)]
