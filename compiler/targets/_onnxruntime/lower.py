"""Lowerings for ONNX Runtime on the CPU: standard operators, in the form its kernels are fastest at.

`benchmarks/bench_ort.py` measures each choice against the source's own graph, which ONNX Runtime optimises when it loads it:

- Its optimiser makes SkipLayerNormalization of an Add and a norm over [B,S,H], and that kernel takes several times as long as
  the Add and the LayerNormalization it stands for. The optimiser looks for three dimensions, so a sum of four is left alone.
- The projections of attention stay three, so that no Split copies them, without the biases that a softmax cannot see or lets
  through; the scale is in Wq.

No com.microsoft operator is written: Attention is wrong for a mask that is padded left or has holes, and with the mask as
`attention_bias`, as MultiHeadAttention too, exact but no faster than what is here; BiasGelu and FusedMatMul ONNX Runtime makes by
itself. So the file runs on any runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...graph import DOMAIN, Graph
from ...ops import EPSILON, Body, expand, padded_inputs
from ...ops.bodies import looked_up
from .._tensorrt.lower_common import Parts, constant
from .lower_packed import packed_attention, share_equal_nodes

PACKED_LAYOUT = "FusedPackedLayout"


def lower(graph: Graph) -> Graph:
    """Standard operators only; a graph without `bertc` nodes is left as it is."""
    if not any(node.domain == DOMAIN for node in graph.model.graph.all_nodes()):
        return graph
    lowered = expand(graph, LOWERINGS)
    if any(node.op_type == PACKED_LAYOUT for node in graph.model.graph):
        share_equal_nodes(lowered.model)
    RemoveUnusedNodesPass()(lowered.model)  # the packed weights, which three others were cut from
    return lowered


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention: three projections; the query's bias only, the value's folded into the output's, the scale into Wq."""
    x, mask, *_ = padded_inputs(node, 6)
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


def skip_layernorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipLayerNorm: the sum has one dimension more, so that it stays a sum."""
    x, skip, b, gamma, beta = padded_inputs(node, 5)
    first = constant(op, node, "first", np.array([0], np.int64))
    total = op.Add(x if b is None else op.Add(x, b), op.Unsqueeze(skip, first))
    made = _norm(op, total, gamma, beta, node)
    return [op.Squeeze(value, first) for value in (made, total)[: len(node.outputs)]]


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedEmbeddings: the canonical sum, normalised with one dimension more."""
    *_, gamma, beta = padded_inputs(node, 8)
    first = constant(op, node, "first", np.array([0], np.int64))
    return [op.Squeeze(_norm(op, op.Unsqueeze(looked_up(op, node), first), gamma, beta, node), first)]


def _norm(op: Any, total: ir.Value, gamma: ir.Value, beta: ir.Value | None, node: ir.Node) -> ir.Value:
    given = [total, gamma] if beta is None else [total, gamma, beta]
    return op.LayerNormalization(*given, axis=-1, epsilon=node.attributes.get_float("epsilon", EPSILON))


# What is not here is inlined as its canonical body.
LOWERINGS: Mapping[str, Body] = {
    "FusedAttention": attention,
    "FusedSkipLayerNorm": skip_layernorm,
    "FusedEmbeddings": embeddings,
    "FusedPackedAttention": packed_attention,
}
