"""What ONNX Runtime on the CPU gets for each `bertc` operator.

ONNX Runtime's own load-time optimiser makes SkipLayerNormalization, BiasGelu and FusedMatMul out of the canonical bodies by
itself (seen in its optimised graphs), so writing those com.microsoft operators here changes nothing but ties the file to one
runtime. What it does not do is take work away, and that is what is here: the projections stay three, so that no Split copies
them, without the biases that a softmax cannot see or lets through.

com.microsoft.Attention is not used: it is wrong for a mask that is padded left or has holes. EmbedLayerNormalization (exact, but
it takes int32 ids only, and showed no gain) and MultiHeadAttention (exact with `attention_bias`, no clear gain) are not either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import Body, inputs
from ._lower_trt import Parts, constant


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention: three projections; the query's bias only, the value's folded into the output's, the scale into Wq."""
    x, mask, *_ = inputs(node, 6)
    parts = Parts(node)
    split = constant(op, node, "split", np.array([0, 0, parts.heads, parts.size], np.int64))
    linear = {name: op.MatMul(x, parts.weight(op, name)) for name in ("q", "k", "v")}
    bias = parts.query_bias()
    if bias is not None:
        linear["q"] = op.Add(linear["q"], constant(op, node, "q_bias", bias))
    perms = {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}
    q, k, v = (op.Transpose(op.Reshape(linear[name], split), perm=perm) for name, perm in perms.items())
    scores = op.MatMul(q, k)
    scores = scores if mask is None else op.Add(scores, mask)
    context = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=(0, 2, 1, 3))
    merged = op.Reshape(context, constant(op, node, "merge", np.array([0, 0, parts.heads * parts.size], np.int64)))
    y, out_bias = op.MatMul(merged, node.inputs[4]), parts.output_bias()
    return [y if out_bias is None else op.Add(y, constant(op, node, "out_bias", out_bias))]


# What is not here is inlined as its canonical body.
LOWERINGS: Mapping[str, Body] = {"FusedAttention": attention}
