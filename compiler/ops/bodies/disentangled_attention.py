"""FusedDisentangledAttention: attention over content and relative position, both looked up in products with position vectors.

FusedDisentangledAttention(x [B,S,H], mask?, Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?, pos_k [h,R,d], c2p [1,S,S] int,
                           pos_q [h,R,d], p2c [1,S,S] int; num_heads, scale) -> [B,S,N]

scores[i,j] = scale * (q_i k_j + q_i pos_k[c2p[i,j]] + k_j pos_q[p2c[j,i]]) + mask[i,j]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import add_all, constant, head_count, merge_heads, split_heads
from ..declared import given_inputs

OP = "FusedDisentangledAttention"
MASK_INPUT = 1  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, mask, wqkv, bqkv, wo, bo, pos_k, c2p, pos_q, p2c = given_inputs(node, 10)
    q, k, v = (op.Transpose(part, perm=[0, 2, 1, 3]) for part in split_heads(op, x, wqkv, bqkv, head_count(node), 3))
    positions = op.Add(
        looked_up_positions(op, q, pos_k, c2p), op.Transpose(looked_up_positions(op, k, pos_q, p2c), perm=[0, 1, 3, 2])
    )
    scores = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), positions)
    scaled = op.Mul(scores, constant(op, node.attributes.get_float("scale", 1.0)))
    context = op.MatMul(op.Softmax(add_all(op, scaled, mask), axis=-1), v)
    return [merge_heads(op, context, wo, bo)]


def looked_up_positions(op: Any, x: ir.Value, table: ir.Value, index: ir.Value) -> ir.Value:
    """[B,h,S,S]: for each place of x [B,h,S,d] its products with those rows of the table [h,R,d] that the index names."""
    products = op.MatMul(x, op.Transpose(table, perm=[0, 2, 1]))
    wide = op.Concat(op.Shape(products, start=0, end=3), op.Shape(index, start=2, end=3), axis=0)
    return op.GatherElements(products, op.Expand(op.Unsqueeze(index, constant(op, [0], np.int64)), wide), axis=3)
