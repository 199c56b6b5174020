"""FusedCrossAttention: queries of one sequence, keys and values of another (a decoder that reads its encoder).

FusedCrossAttention(x [B,S,H], memory [B,T,M], mask?, Wq [H,h*d], bq [h*d]?, Wkv [M,2*h*d], bkv [2*h*d]?, Wo [h*d,N], bo [N]?;
                    num_heads, scale) -> [B,S,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import add_all, constant, head_count, merge_heads, scaled_dot_product, split_heads
from ..declared import given_inputs

OP = "FusedCrossAttention"
MASK_INPUT = 2  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, memory, mask, wq, bq, wkv, bkv, wo, bo = given_inputs(node, 9)
    heads = head_count(node)
    q = op.Reshape(add_all(op, op.MatMul(x, wq), bq), constant(op, [0, 0, heads, -1], np.int64))
    k, v = split_heads(op, memory, wkv, bkv, heads, 2)
    q, k_t, v = (op.Transpose(t, perm=perm) for t, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    context = scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0))
    return [merge_heads(op, context, wo, bo)]
