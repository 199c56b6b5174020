"""The attentions of the CUDA provider: Attention with its projection inside, MultiHeadAttention of projections that lie apart.

Biases of projections go into the kernel where it takes them. The scale is an attribute; 0 would mean "1 / sqrt(size)" there, so a
scale of 0 keeps the canonical body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import BODIES, add_all, padded_inputs
from ...ops import constant as made_constant
from ...ops.bodies import looked_up_positions, rotate
from .._tensorrt.lower_common import Parts, constant, lazy_weight
from .contrib import contrib, of_rank, same_size, typed


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention as Attention and the output projection."""
    x, mask, w, b, wo, bo = padded_inputs(node, 6)
    if not possible(node, x, mask):
        return BODIES[node.op_type](op, node)
    heads, width = heads_of(node), int(w.shape[1]) // 3
    bias = b if b is not None else constant(op, node, "no_bias", np.zeros(3 * width, np.float32))
    given = [x, w, bias, *([] if mask is None else [None, None, scores_bias(op, mask, None)])]
    context = contrib(op, "Attention", *given, num_heads=heads, scale=scale_of(node))
    return [projected(op, typed(context, [*x.shape[:2], width]), wo, bo)]


def projected_apart(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention whose projections stay MatMul, so that their weights can be stored as int8."""
    x, mask, *_ = padded_inputs(node, 6)
    if not possible(node, x, mask):
        return BODIES[node.op_type](op, node)
    parts = Parts(node)
    q, k, v = (op.MatMul(x, unscaled(op, parts, name)) for name in "qkv")
    return [_attended(op, node, q, k, v, parts.b, mask)]


def unscaled(op: Any, parts: Parts, name: str) -> ir.Value:
    """Wq, Wk or Wv as it is."""
    tensor, width = parts.w.const_value, parts.heads * parts.size
    at = "qkv".index(name) * width
    shape = (int(parts.w.shape[0]), width)
    return lazy_weight(op, f"{parts.prefix}/W{name}", shape, lambda: tensor.numpy()[:, at : at + width])


def rotary_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedRotaryAttention: RotaryEmbedding turns queries and keys where the halves of an angle are one, else standard ONNX."""
    x, mask, cos, sin, w, b, wo, bo = padded_inputs(node, 8)
    if not possible(node, x, mask) or not of_rank(cos, 4):
        return BODIES[node.op_type](op, node)
    heads, width = heads_of(node), int(w.shape[1]) // 3
    packed = typed(add_all(op, op.MatMul(x, w), b), [*x.shape[:2], 3 * width])
    q, k, v = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    if cos.shape[0] == 1 and halves_are_one(cos) and halves_are_one(sin):
        tables = [half_table(op, angle, width // heads // 2) for angle in (cos, sin)]
        first = made_constant(op, [0], np.int64)
        q, k = (
            typed(contrib(op, "RotaryEmbedding", part, first, *tables, num_heads=heads), [*x.shape[:2], width]) for part in (q, k)
        )
    else:
        turns = [op.Transpose(angle, perm=[0, 2, 1, 3]) for angle in (cos, sin)]
        apart, merged = (made_constant(op, [0, 0, count, -1][: 4 - (count == -1)], np.int64) for count in (heads, -1))
        q, k = (op.Reshape(rotate(op, op.Reshape(part, apart), *turns), merged) for part in (q, k))
    return [_attended(op, node, q, k, v, None, mask, wo, bo)]


def half_table(op: Any, angle: ir.Value, size: int) -> ir.Value:
    """[1,1,S,d] as the table [S,d/2] of RotaryEmbedding, which is read from row 0 on."""
    ends = (made_constant(op, [number], np.int64) for number in (0, size, 3))
    half = op.Slice(angle, *ends)
    return op.Squeeze(half, made_constant(op, [0, 1], np.int64))


def halves_are_one(value: ir.Value | None) -> bool:
    """Whether the last axis is one half twice: a Concat of a value with itself, behind what works number by number."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "Concat":
            axis = node.attributes.get_int("axis", 0)
            rank = None if value.shape is None else len(value.shape)
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1] and axis in (-1, None if rank is None else rank - 1)
        by_number = node.op_type in ("Cos", "Sin", "Cast", "Identity")
        scaled = node.op_type == "Mul" and node.inputs[1] is not None and _is_number(node.inputs[1])
        if not by_number and not scaled and not (node.op_type == "Unsqueeze" and _leaves_last_axis(node)):
            return False
        value = node.inputs[0]
    if value is None or value.const_value is None or value.const_value.size < 2:
        return False
    first, second = np.split(value.const_value.numpy(), 2, axis=-1)
    return bool((first == second).all())


def _is_number(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1


def _leaves_last_axis(node: ir.Node) -> bool:
    axes = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    shape = node.outputs[0].shape
    return axes is not None and shape is not None and all(int(a) % len(shape) != len(shape) - 1 for a in axes.numpy().reshape(-1))


def cross_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedCrossAttention: MultiHeadAttention of queries of one sequence and keys and values of another."""
    x, memory, mask, wq, bq, wkv, bkv, wo, bo = padded_inputs(node, 9)
    if not possible(node, x, mask) or not of_rank(memory, 3):
        return BODIES[node.op_type](op, node)
    width = int(wq.shape[1])
    both = typed(add_all(op, op.MatMul(memory, wkv), bkv), [*memory.shape[:2], 2 * width])
    k, v = op.Split(both, axis=2, num_outputs=2, _outputs=2)
    return [_attended(op, node, add_all(op, op.MatMul(x, wq), bq), k, v, None, mask, wo, bo, queries=x)]


def past_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPastAttention: MultiHeadAttention gives the grown cache as well."""
    x, mask, past_k, past_v, w, b, wo, bo = padded_inputs(node, 8)
    if not possible(node, x, mask):
        return BODIES[node.op_type](op, node)
    packed = typed(add_all(op, op.MatMul(x, w), b), [*x.shape[:2], int(w.shape[1])])
    q, k, v = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    bias = None if mask is None else scores_bias(op, mask, x)
    given = [q, k, v, None, None, bias, past_k, past_v]
    context, *cache = contrib(op, "MultiHeadAttention", *given, outputs=3, num_heads=heads_of(node), scale=scale_of(node))
    for made, value in zip(cache, node.outputs[1:], strict=True):
        typed(made, value.shape)
    return [projected(op, typed(context, [*x.shape[:2], int(w.shape[1]) // 3]), wo, bo), *cache]


def disentangled_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedDisentangledAttention: what positions add to the scores is a bias of MultiHeadAttention, as the mask is."""
    x, mask, w, b, wo, bo, pos_k, c2p, pos_q, p2c = padded_inputs(node, 10)
    if not possible(node, x, mask):
        return BODIES[node.op_type](op, node)
    packed = typed(add_all(op, op.MatMul(x, w), b), [*x.shape[:2], int(w.shape[1])])
    q, k, v = op.Split(packed, axis=2, num_outputs=3, _outputs=3)
    apart = made_constant(op, [0, 0, heads_of(node), -1], np.int64)
    by_head = [op.Transpose(op.Reshape(part, apart), perm=[0, 2, 1, 3]) for part in (q, k)]
    to_key = looked_up_positions(op, by_head[0], pos_k, c2p)
    to_query = op.Transpose(looked_up_positions(op, by_head[1], pos_q, p2c), perm=[0, 1, 3, 2])
    scaled = op.Mul(op.Add(to_key, to_query), made_constant(op, scale_of(node)))
    return [_attended(op, node, q, k, v, None, None, wo, bo, bias=add_all(op, scaled, mask))]


def _attended(
    op: Any, node: ir.Node, q: ir.Value, k: ir.Value, v: ir.Value, b: ir.Value | None, mask: ir.Value | None,
    wo: ir.Value | None = None, bo: ir.Value | None = None, *, queries: ir.Value | None = None, bias: ir.Value | None = None,
) -> ir.Value:  # fmt: skip
    """MultiHeadAttention of [B,S,h*d] each, with the biases of the three projections, and the output projection.

    `queries`: what the queries were made of, where the mask is not of their length.
    """
    if mask is not None:
        bias = scores_bias(op, mask, queries)
    given = [q, k, v, b, None, bias]
    while given[-1] is None:
        given.pop()
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    context = contrib(op, "MultiHeadAttention", *given, num_heads=heads_of(node), scale=scale_of(node))
    if wo is None:
        _, _, _, _, wo, bo = padded_inputs(node, 6)
    width = None if wo.shape is None else wo.shape[0]
    return projected(op, typed(context, [*x.shape[:2], width]), wo, bo)


def projected(op: Any, context: ir.Value, wo: ir.Value, bo: ir.Value | None) -> ir.Value:
    return add_all(op, op.MatMul(context, wo), bo)


def heads_of(node: ir.Node) -> int:
    return node.attributes.get_int("num_heads", 0)


def scale_of(node: ir.Node) -> float:
    return node.attributes.get_float("scale", 1.0)


def possible(node: ir.Node, x: ir.Value, mask: ir.Value | None) -> bool:
    """Whether the kernel can say it: three dimensions, a scale that is not its word for another, a mask with a number a key."""
    of_keys = mask is None or (of_rank(mask, 1, 2, 3, 4) and mask.shape is not None and mask.shape[-1] != 1)
    return bool(heads_of(node) and of_rank(x, 3) and of_keys and scale_of(node))


def scores_bias(op: Any, mask: ir.Value, queries: ir.Value | None) -> ir.Value:
    """A mask as [B or 1, h or 1, S, T]: the provider broadcasts the first two dimensions alone.

    `queries` [B,S,...] say S where the keys are not theirs; without them S is T.
    """
    assert mask.shape is not None
    rank = len(mask.shape)
    wanted = mask.shape[-1] if queries is None or queries.shape is None else queries.shape[1]
    if rank == 4 and mask.shape[2] != 1 and same_size(mask.shape[2], wanted):
        return mask
    keys = op.Shape(mask, start=rank - 1, end=rank)
    length = keys if queries is None else op.Shape(queries, start=1, end=2)
    return op.Expand(mask, op.Concat(made_constant(op, [1, 1], np.int64), length, keys, axis=0))
