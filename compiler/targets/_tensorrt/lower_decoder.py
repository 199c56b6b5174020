"""Lowerings of decoders for TensorRT and TensorRT-RTX: a step with its cache, a causal mask, attention to an encoder.

A step has one query, so its products are vectors and its kernels are of another kind (`_gemv_mha`): the compiler puts the new key
and value into the cache and adds their biases by itself. So nothing is turned around here; the scale is multiplied into Wq, and a
key's bias must stay, because the cache keeps it. The heads are cut apart behind the Reshape: cut along the width, as eager GPT-2
does, three copies a layer are added (25 kernels in the place of 19, two layers, fp16, sm89).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import Body, padded_inputs
from .lower_common import SWAP, constant, folded_bias, lazy_weight


def causal_mask(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedCausalMask: built once for the network. `low` is an initializer: the typing pass gives it a stand-in."""
    mask, queries = padded_inputs(node, 2)
    zero, one = (constant(op, node, name, np.int64(n)) for name, n in (("zero", 0), ("one", 1)))
    scalar = constant(op, node, "scalar", np.array([], np.int64))
    length = queries if mask is None else op.Shape(mask, start=1, end=2)
    end = op.Reshape(length, scalar)
    keys = rows = op.Range(zero, end, one)
    if mask is not None and queries is not None:
        rows = op.Range(op.Reshape(op.Sub(length, queries), scalar), end, one)
    rows = op.Unsqueeze(rows, constant(op, node, "behind", np.array([1], np.int64)))
    seen = op.Unsqueeze(op.LessOrEqual(keys, rows), constant(op, node, "before", np.array([0, 1], np.int64)))
    if mask is not None:
        held = op.Cast(mask, to=ir.DataType.BOOL)
        seen = op.And(seen, op.Unsqueeze(held, constant(op, node, "axes", np.array([1, 2], np.int64))))
    low = constant(op, node, "unseen", np.float32(node.attributes["low"].as_float()))
    return [op.Where(seen, constant(op, node, "seen", np.float32(0)), low)]


def past_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPastAttention: one projection, one Split of its heads."""
    x, mask, past_k, past_v, w, b, wo, bo = padded_inputs(node, 8)
    heads = node.attributes["num_heads"].as_int()
    width = int(w.shape[1]) // 3
    held = w.const_value  # not the value, which is without it while a shape inference runs and reads this
    packed = lazy_weight(op, f"{node.name}/Wqkv", list(w.shape), lambda: _scale(node, held.numpy(), width))
    y = op.MatMul(x, packed)
    if b is not None:
        y = op.Add(y, constant(op, node, "qkv_bias", _scale(node, b.const_value.numpy(), width)))
    y = op.Reshape(y, constant(op, node, "split", np.array([0, 0, 3 * heads, width // heads], np.int64)))
    q, k, v = (op.Transpose(part, perm=(0, 2, 1, 3)) for part in op.Split(y, axis=2, num_outputs=3, _outputs=3))
    keys, values = op.Concat(past_k, k, axis=2), op.Concat(past_v, v, axis=2)
    scores = op.MatMul(q, op.Transpose(keys, perm=(0, 1, 3, 2)))
    scores = scores if mask is None else op.Add(scores, mask)
    context = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), values), perm=(0, 2, 1, 3))
    merged = op.Reshape(context, constant(op, node, "merge", np.array([0, 0, width], np.int64)))
    made = op.MatMul(merged, wo)
    return [made if bo is None else op.Add(made, bo), keys, values]


def _scale(node: ir.Node, array: np.ndarray, width: int) -> np.ndarray:
    """The columns of q times the scale."""
    scale = np.float32(node.attributes.get_float("scale", 1.0))
    return np.concatenate([array[..., :width] * scale, array[..., width:]], axis=-1)


def cross_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedCrossAttention: as self-attention, the key's bias dropped and the value's passed on to the output's."""
    x, memory, mask, wq, bq, wkv, bkv, wo, bo = padded_inputs(node, 9)
    heads = node.attributes["num_heads"].as_int()
    width = int(wq.shape[1])
    scale = np.float32(node.attributes.get_float("scale", 1.0))
    split = constant(op, node, "split", np.array([0, 0, heads, width // heads], np.int64))
    turned, read = op.Transpose(x, perm=SWAP), op.Transpose(memory, perm=SWAP)
    weights = [_columns(op, node, name, w, slice(start, start + width), factor) for name, w, start, factor in (
        ("q", wq, 0, scale), ("k", wkv, 0, np.float32(1)), ("v", wkv, width, np.float32(1)))]  # fmt: skip
    q, k, v = (
        op.Transpose(op.Reshape(op.MatMul(source, weight), split), perm=perm)
        for source, weight, perm in zip((turned, read, read), weights, ((1, 2, 0, 3), (1, 2, 3, 0), (1, 2, 0, 3)), strict=True)
    )
    if bq is not None and bq.const_value.numpy().any():
        q = op.Add(q, constant(op, node, "q_bias", (bq.const_value.numpy() * scale).reshape(1, heads, 1, width // heads)))
    scores = op.MatMul(q, k)
    scores = scores if mask is None else op.Add(scores, mask)
    context = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=(2, 0, 1, 3))
    made = op.MatMul(op.Reshape(context, constant(op, node, "merge", np.array([0, 0, width], np.int64))), wo)
    bias = folded_bias(None if bkv is None else bkv.const_value.numpy()[width:], wo, bo)
    return [op.Transpose(made if bias is None else op.Add(made, constant(op, node, "out_bias", bias)), perm=SWAP)]


def _columns(op: Any, node: ir.Node, name: str, w: Any, part: slice, factor: np.float32) -> ir.Value:
    """Some columns of a weight times a number, cut out when they are read."""
    shape, held = (int(w.shape[0]), part.stop - part.start), w.const_value
    return lazy_weight(op, f"{node.name}/W{name}", shape, lambda: held.numpy()[:, part] * factor)


LOWERINGS: Mapping[str, Body] = {
    "FusedCausalMask": causal_mask,
    "FusedPastAttention": past_attention,
    "FusedCrossAttention": cross_attention,
}
