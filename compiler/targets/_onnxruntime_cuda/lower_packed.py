"""Attention over packed tokens for the CUDA provider: PackedAttention, PackedMultiHeadAttention of projections that lie apart.

These operators take tokens [T, H] row after row, where each row ends, and `token_offset`: the position of each token in the
batch, its rows begun at 0, then the positions without a token. RemovePadding makes the two of how many tokens a row has, so it is
given a value of one number a position, whose own result nobody reads. A row's tokens may stand anywhere in the padded batch:
NonZero finds them, without a number that has to be copied to the GPU.

A mask goes in as `attention_bias` [B or 1, h or 1, S, S], by position in the row: the layout keeps rows from their start where an
attention has one. There is no kernel of these on the CPU; `runtime/cuda_operators.py` says them in standard ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import CheckFailed
from ...ops import BODIES, add_all, padded_inputs
from ...ops import constant as made_constant
from ...ops.bodies import kept_positions, rotate
from .._tensorrt.lower_common import Parts, constant
from .contrib import contrib, counts_from_0, typed
from .lower_attention import half_table, halves_are_one, heads_of, projected, scale_of, scores_bias, unscaled

LAYOUT = "FusedPackedLayout"
TOKENS = "packed_tokens"


def layout(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedLayout with the rows in the batch's own order."""
    kept = kept_positions(op, node)
    counts = op.ReduceSum(op.Cast(kept, to=ir.DataType.INT32), _ints(op, 1), keepdims=0)
    ones = typed(op.Where(op.Unsqueeze(kept, _ints(op, 2)), made_constant(op, 1.0), made_constant(op, 0.0)), None)
    removed = contrib(op, "RemovePadding", ones, counts, outputs=4)
    for value in removed[1:]:
        value.type = ir.TensorType(ir.DataType.INT32)
    tokens = op.Squeeze(op.NonZero(op.Reshape(kept, _ints(op, -1))), _ints(op, 0))
    found = op.NonZero(kept)
    rows, places = (op.Gather(found, made_constant(op, axis, np.int64), axis=0) for axis in (0, 1))
    return [tokens, op.Cast(removed[2], to=ir.DataType.INT64), rows, places][: len(node.outputs)]


def remove_padding(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedRemovePadding as one Gather or GatherND; positions that count from 0 are the places themselves."""
    x, _, _, places, _ = node.inputs
    assert x is not None and places is not None
    spread = node.attributes.get_string("spread", "")
    if spread == "positions":
        return [op.Gather(_found(node), _ints(op, 1), axis=0) if counts_from_0(x) else op.Gather(x, places, axis=1)]
    if spread or x.dtype == ir.DataType.INT32:  # of which GatherND has no kernel
        return BODIES[node.op_type](op, node)
    return [op.GatherND(x, op.Unsqueeze(_pairs(op, node), _ints(op, 0)))]


def restore_padding(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedRestorePadding as one ScatterND."""
    x, *_, grid = node.inputs
    rest = x.shape.dims[2:] if x is not None and x.shape is not None else [None]
    known = all(isinstance(dim, int) for dim in rest)  # then no shape is read behind the last layer
    size = made_constant(op, list(rest), np.int64) if known else op.Shape(x, start=2)
    empty = op.Expand(made_constant(op, 0.0), op.Concat(op.Shape(grid), size, axis=0))
    return [op.ScatterND(empty, _pairs(op, node), op.Squeeze(x, _ints(op, 0)))]


def _pairs(op: Any, node: ir.Node) -> ir.Value:
    """[T,2]: row and place of each token."""
    return op.Transpose(_found(node), perm=[1, 0])


def _found(node: ir.Node) -> ir.Value:
    """[2,T]: the rows, and the places, of a node's layout."""
    rows = node.inputs[2]
    maker = rows.producer() if rows is not None else None
    if maker is None or maker.op_type != "Gather" or maker.inputs[0] is None:
        raise CheckFailed(f"{node.name}: its tokens do not come of a {LAYOUT} of its graph")
    return maker.inputs[0]


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedAttention as PackedAttention, its projections inside, and the output projection."""
    x, mask, w, b, wo, bo, _, _, _, cos, _ = padded_inputs(node, 11)
    if cos is not None:
        return projected_apart(op, node)
    if not scale_of(node):  # which the kernel takes for 1 / sqrt(size)
        return BODIES[node.op_type](op, node)
    bias = b if b is not None else constant(op, node, "no_bias", np.zeros(int(w.shape[1]), np.float32))
    given = [op.Squeeze(x, _ints(op, 0)), w, bias, *_rows(node), *_biases(op, mask)]
    context = contrib(op, "PackedAttention", *given, num_heads=heads_of(node), scale=scale_of(node))
    return [_answer(op, context, int(w.shape[1]) // 3, wo, bo)]


def projected_apart(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedAttention as PackedMultiHeadAttention: turned by angles, or with weights that can be stored as int8."""
    x, mask, w, b, wo, bo, tokens, _, _, cos, sin = padded_inputs(node, 11)
    if not scale_of(node):
        return BODIES[node.op_type](op, node)
    parts, width, flat = Parts(node), int(w.shape[1]) // 3, op.Squeeze(x, _ints(op, 0))
    if cos is None:
        q, k, v = (op.MatMul(flat, unscaled(op, parts, name)) for name in "qkv")
    else:
        packed, b = add_all(op, op.MatMul(flat, w), b), None
        q, k, v = op.Split(packed, axis=1, num_outputs=3, _outputs=3)
        q, k = _turned(op, node, (q, k), cos, sin, tokens)
    given = [q, k, v, b, *_rows(node), *_biases(op, mask)]
    context = contrib(op, "PackedMultiHeadAttention", *given, num_heads=heads_of(node), scale=scale_of(node))
    return [_answer(op, context, width, wo, bo)]


def _answer(op: Any, context: ir.Value, width: int, wo: ir.Value, bo: ir.Value | None) -> ir.Value:
    return op.Unsqueeze(projected(op, typed(context, [TOKENS, width]), wo, bo), _ints(op, 0))


def _removed(node: ir.Node) -> ir.Node:
    """The RemovePadding that says where the rows of a node's layout end."""
    ends = node.inputs[7]
    cast = ends.producer() if ends is not None else None
    maker = cast.inputs[0].producer() if cast is not None and cast.inputs and cast.inputs[0] is not None else None
    if maker is None or maker.op_type != "RemovePadding":
        raise CheckFailed(f"{node.name}: its rows do not come of a {LAYOUT} of its graph")
    return maker


def _rows(node: ir.Node) -> list[ir.Value]:
    """token_offset and cumulative_sequence_length."""
    return list(_removed(node).outputs[1:3])


def _biases(op: Any, mask: ir.Value | None) -> list[ir.Value]:
    return [] if mask is None else [scores_bias(op, mask, None)]


def _turned(
    op: Any, node: ir.Node, parts: Sequence[ir.Value], cos: ir.Value, sin: ir.Value, tokens: ir.Value
) -> list[ir.Value]:  # fmt: skip
    """Queries and keys [T, h*d], each token turned by the angles of its place. To RotaryEmbedding it is a row by itself: the
    operator takes no sequence longer than its table."""
    heads = heads_of(node)
    if cos.shape is None or sin.shape is None:
        raise CheckFailed(f"{node.name}: its angles have no known shape")
    both = [cos.shape[0], sin.shape[0]] == [1, 1]
    if both and halves_are_one(cos) and halves_are_one(sin):
        size = int(cos.shape[3]) // 2  # type: ignore[arg-type]
        tables, place = [half_table(op, angle, size) for angle in (cos, sin)], op.Unsqueeze(_places(op, node), _ints(op, 1))
        rows = (op.Unsqueeze(part, _ints(op, 1)) for part in parts)
        turned = [contrib(op, "RotaryEmbedding", row, place, *tables, num_heads=heads) for row in rows]
        return [op.Squeeze(row, _ints(op, 1)) for row in turned]
    angles = [_of_tokens(op, node, angle, tokens) for angle in (cos, sin)]
    apart, merged = _ints(op, 0, heads, -1), _ints(op, 0, -1)
    return [op.Reshape(rotate(op, op.Reshape(part, apart), *angles), merged) for part in parts]


def _of_tokens(op: Any, node: ir.Node, angle: ir.Value, tokens: ir.Value) -> ir.Value:
    """Angles [1|B,1,S,d] of the padded batch as [T,1,d]."""
    assert angle.shape is not None
    flat = op.Reshape(angle, _ints(op, -1, 1, int(angle.shape[3])))  # type: ignore[arg-type]
    return op.Gather(flat, _places(op, node) if angle.shape[0] == 1 else tokens, axis=0)


def _places(op: Any, node: ir.Node) -> ir.Value:
    """[T]: the position of each token in its row of the padded batch."""
    ones = _removed(node).inputs[0]
    kept = ones.producer().inputs[0].producer().inputs[0]  # type: ignore[union-attr]
    return op.Gather(op.NonZero(kept), made_constant(op, 1, np.int64), axis=0)


def _ints(op: Any, *values: int) -> ir.Value:
    return made_constant(op, list(values), np.int64)
