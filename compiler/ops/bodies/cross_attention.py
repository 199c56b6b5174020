"""FusedCrossAttention: queries of one sequence, keys and values of another (a decoder that reads its encoder).

FusedCrossAttention(x [B,S,H], memory [B,T,M], mask?, Wq [H,h*d], bq [h*d]?, Wkv [M,2*h*d], bkv [2*h*d]?, Wo [h*d,N], bo [N]?;
                    num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import add_all, constant, padded_inputs, scaled_dot_product

OP = "FusedCrossAttention"
MASK_INPUT = 2  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, memory, mask, wq, bq, wkv, bkv, wo, bo = padded_inputs(node, 9)
    heads = node.attributes.get_int("num_heads")
    if not heads:
        raise InputError(f"FusedCrossAttention {node.name!r} has no attribute num_heads")
    q = op.Reshape(add_all(op, op.MatMul(x, wq), bq), constant(op, [0, 0, heads, -1], np.int64))
    packed = op.Reshape(add_all(op, op.MatMul(memory, wkv), bkv), constant(op, [0, 0, 2 * heads, -1], np.int64))
    k, v = op.Split(packed, axis=2, num_outputs=2, _outputs=2)
    q, k_t, v = (op.Transpose(t, perm=perm) for t, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    context = op.Transpose(scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0)), perm=[0, 2, 1, 3])
    return [add_all(op, op.MatMul(op.Reshape(context, constant(op, [0, 0, -1], np.int64)), wo), bo)]
