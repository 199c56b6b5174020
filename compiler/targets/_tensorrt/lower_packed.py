"""Packed tokens for TensorRT: everything works on tokens but attention, which is padded for itself alone.

How many tokens there are follows from the mask's numbers, which TensorRT's NonZero layer can say and TensorRT-RTX has not. An
attention gathers its projections into the padded batch and its result out of it: each position has the number of its token, a
position without one that of the first, which nobody sees. That number is the same for all layers (`share_equal_nodes`).

TensorRT's own packed attention (TRT_Attention, form "packed_nhd") is not written: it has no decomposition, so a builder without a
kernel of it fails, and for which GPUs there is one is said nowhere; TensorRT-RTX 1.7 has it for none. With `--plugin
packed_attention` it is a kernel of ours, over tokens alone (`plugin_attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, LiftConstantsToInitializersPass

from ...graph import MASK_LOW
from ...ops import Body, padded_inputs
from ...ops import constant as made_constant
from ...ops.bodies import kept_positions, rotate
from .lower_common import SWAP, Parts, constant

LAYOUT = "FusedPackedLayout"


def share_equal_nodes(model: ir.Model) -> None:
    """What follows from lengths alone is computed once; numbers are initializers, which `precision` may replace."""
    CommonSubexpressionEliminationPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def layout(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedLayout with the rows in the batch's own order."""
    kept = kept_positions(op, node)
    counts = op.ReduceSum(op.Cast(kept, to=ir.DataType.INT32), _ints(op, 1), keepdims=0)
    ends = op.Concat(made_constant(op, [0], np.int32), op.CumSum(counts, made_constant(op, 0, np.int64)), axis=0)
    found = op.NonZero(kept)
    rows, places = (op.Gather(found, made_constant(op, axis, np.int64), axis=0) for axis in (0, 1))
    length = op.Gather(op.Shape(node.inputs[0]), made_constant(op, 1, np.int64))
    made = [op.Add(op.Mul(rows, length), places), op.Cast(ends, to=ir.DataType.INT64), rows, places]
    return made[: len(node.outputs)]


def restore_padding(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedRestorePadding as a Gather, zeros where there is no token."""
    x, tokens, *_, grid = node.inputs
    token = _token_of_position(op, tokens, grid)
    assert x is not None and x.shape is not None
    rank, none = len(x.shape), made_constant(op, 0, np.int64)
    rows = op.Gather(op.Squeeze(x, _ints(op, 0)), op.Max(token, none), axis=0)
    shape = op.Shape(grid)
    there = op.Reshape(_there(op, token), op.Concat(shape, _ints(op, *[1] * (rank - 2)), axis=0))
    whole = op.Reshape(rows, op.Concat(shape, op.Shape(x, start=2), axis=0))
    return [op.Where(there, whole, made_constant(op, 0.0))]


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedAttention with its projections on tokens, padded between them."""
    _, mask, _, _, _, _, tokens, _, grid, *_ = padded_inputs(node, 11)
    parts = Parts(node)
    token = _token_of_position(op, tokens, grid)
    index = op.Max(token, made_constant(op, 0, np.int64))
    by_head = op.Concat(op.Shape(grid), _ints(op, 3 * parts.heads, parts.size), axis=0)
    heads = op.Reshape(op.Gather(projections(op, node, parts), index, axis=0), by_head)
    q, k, v = op.Split(heads, axis=2, num_outputs=3, _outputs=3)
    q, k, v = (op.Transpose(t, perm=perm) for t, perm in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3))))
    there = op.Reshape(_there(op, token), op.Concat(_size(op, grid, 0), _ints(op, 1, 1), _size(op, grid, 1), axis=0))
    seen = op.Where(there, made_constant(op, 0.0) if mask is None else mask, made_constant(op, MASK_LOW))
    context = op.Transpose(op.MatMul(op.Softmax(op.Add(op.MatMul(q, k), seen), axis=-1), v), perm=(0, 2, 1, 3))
    flat = op.Reshape(context, _ints(op, -1, parts.heads * parts.size))
    return [project(op, node, op.Gather(flat, tokens, axis=0))]


def projections(op: Any, node: ir.Node, parts: Parts) -> ir.Value:
    """[T, 3*h*d]: queries, which have the scale, keys and values; turned by the angles of their places where there are some."""
    x, _, _, bias, _, _, tokens, _, grid, cos, sin = padded_inputs(node, 11)
    flat = op.Squeeze(op.Transpose(x, perm=SWAP), _ints(op, 1))
    y = op.MatMul(flat, parts.weight(op, "qkv"))
    if bias is not None:
        y = op.Add(y, constant(op, node, "qkv_bias", parts.packed_bias()))
    if cos is None:
        return y
    angles = [_of_tokens(op, turn, tokens, grid) for turn in (cos, sin)]
    apart = op.Split(op.Reshape(y, _ints(op, 0, 3 * parts.heads, parts.size)), axis=1, num_outputs=3, _outputs=3)
    turned = [*(rotate(op, part, *angles) for part in apart[:2]), apart[2]]
    return op.Reshape(op.Concat(*turned, axis=1), _ints(op, 0, -1))


def project(op: Any, node: ir.Node, context: ir.Value) -> ir.Value:
    """[T, h*d] through the output projection, as [1, T, N]."""
    _, _, _, _, wo, bo = padded_inputs(node, 6)[:6]
    y = op.MatMul(context, wo)
    return op.Transpose(op.Unsqueeze(y if bo is None else op.Add(y, bo), _ints(op, 1)), perm=SWAP)


def _token_of_position(op: Any, tokens: ir.Value | None, grid: ir.Value | None) -> ir.Value:
    """[B*S]: the number of the token at each position, -1 where there is none."""
    none = op.Expand(made_constant(op, -1, np.int64), op.Reshape(op.ReduceProd(op.Shape(grid)), _ints(op, 1)))
    zero, one = (made_constant(op, number, np.int64) for number in (0, 1))
    counted = op.Range(zero, op.Squeeze(op.Shape(tokens), _ints(op, 0)), one)
    return op.ScatterND(none, op.Unsqueeze(tokens, _ints(op, 1)), counted)


def _there(op: Any, token: ir.Value) -> ir.Value:
    return op.GreaterOrEqual(token, made_constant(op, 0, np.int64))


def _of_tokens(op: Any, turn: ir.Value, tokens: ir.Value, grid: ir.Value) -> ir.Value:
    """Angles [1|B,1,S,d] of the padded batch as [T,1,d]."""
    assert turn.shape is not None
    flat = op.Reshape(turn, op.Concat(_ints(op, -1, 1), op.Shape(turn, start=3), axis=0))
    return op.Gather(flat, op.Mod(tokens, _size(op, grid, 1)) if turn.shape[0] == 1 else tokens, axis=0)


def _size(op: Any, grid: ir.Value, axis: int) -> ir.Value:
    return op.Shape(grid, start=axis, end=axis + 1)


def _ints(op: Any, *values: int) -> ir.Value:
    return made_constant(op, list(values), np.int64)


LOWERINGS: Mapping[str, Body] = {
    LAYOUT: layout,
    "FusedRestorePadding": restore_padding,
    "FusedPackedAttention": attention,
}
