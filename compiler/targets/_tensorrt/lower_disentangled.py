"""Lowering of disentangled attention (DeBERTa) for TensorRT and TensorRT-RTX; why rotary attention and SDPA have none.

FusedRotaryAttention has no entry: its canonical body is one kernel for the split and both rotations, and five other forms that
were tried (three projections, rotations before the transposition, rotated weights, q and k together) cost as much or more.

FusedDisentangledAttention: the products with the position vectors are batched over heads alone, [2h, S*B, d] by [2h, d, R], q
and k in one; with the batch as a batch of its own TensorRT repeats the vectors for each row in a kernel each. Before the fused
attention, which takes the sum of positions and mask as it takes a mask, are left: the projection, one copy of q, k and v, the
products, the look-up. 10 a layer with constant position vectors, 16 to 18 as exported.

FusedSdpa has no entry either: with the scale on the scores or on q, length first or batch first, it is the same fused attention,
and the two kernels that a FusedAttention saves (10 a layer, 8) are copies of q, k and v with their biases, which are not its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import Body, padded_inputs
from ...ops.bodies import disentangled_attention as canonical
from .lower_common import SWAP, Parts, attend_and_project, constant


def disentangled_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedDisentangledAttention: one projection, one copy, one product with all position vectors."""
    x, mask, _, bias, _, out_bias, pos_k, c2p, pos_q, p2c = padded_inputs(node, 10)
    if len(x.shape) != 3:
        return canonical.body(op, node)
    parts = Parts(node)
    y = op.MatMul(op.Transpose(x, perm=SWAP), parts.weight(op, "qkv"))
    if bias is not None:
        y = op.Add(y, constant(op, node, "qkv_bias", parts.packed_bias()))
    heads = op.Reshape(y, _ints(op, node, "split", 0, 0, 3 * parts.heads, parts.size))
    qk, v = op.Split(heads, _ints(op, node, "cut", 2 * parts.heads, parts.heads), axis=2, _outputs=2)
    # q has the scale from its weight; k has none, so the vectors that it meets have it.
    scaled = op.Mul(pos_q, constant(op, node, "scale", parts.scale))
    products = _products(op, node, parts, qk, op.Concat(pos_k, scaled, axis=0), x)
    to_key, to_query = op.Split(products, axis=1, num_outputs=2, _outputs=2)
    q, k = op.Split(op.Transpose(qk, perm=(1, 2, 0, 3)), axis=1, num_outputs=2, _outputs=2)
    wide = op.Concat(op.Shape(q, start=0, end=3), op.Shape(x, start=1, end=2), axis=0)
    from_q = op.GatherElements(to_key, op.Expand(c2p, wide), axis=-1)
    from_k = op.Transpose(op.GatherElements(to_query, op.Expand(p2c, wide), axis=-1), perm=(0, 1, 3, 2))
    positions = op.Add(from_q, from_k)
    added = positions if mask is None else op.Add(positions, mask)
    k_t, v = op.Transpose(k, perm=(0, 1, 3, 2)), op.Transpose(v, perm=(1, 2, 0, 3))
    return [attend_and_project(op, node, parts, q, k_t, v, added, None if out_bias is None else out_bias.const_value.numpy())]


def _products(op: Any, node: ir.Node, parts: Parts, qk: ir.Value, tables: ir.Value, x: ir.Value) -> ir.Value:
    """qk [S,B,2h,d] by tables [2h,R,d] -> [B,2h,S,R]."""
    flat = op.Reshape(op.Transpose(qk, perm=(2, 0, 1, 3)), _ints(op, node, "flat", 2 * parts.heads, -1, parts.size))
    products = op.MatMul(flat, op.Transpose(tables, perm=(0, 2, 1)))
    count, rows = _ints(op, node, "heads", 2 * parts.heads), op.Shape(tables, start=1, end=2)
    dims = op.Concat(count, op.Shape(x, start=1, end=2), op.Shape(x, start=0, end=1), rows, axis=0)
    return op.Transpose(op.Reshape(products, dims), perm=(2, 0, 1, 3))


def _ints(op: Any, node: ir.Node, name: str, *numbers: int) -> ir.Value:
    return constant(op, node, name, np.array(numbers, np.int64))


LOWERINGS: Mapping[str, Body] = {"FusedDisentangledAttention": disentangled_attention}
