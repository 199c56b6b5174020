"""Lowerings for ONNX Runtime's CUDA provider: com.microsoft operators where one kernel does what a canonical operator means.

- The mask always goes in as `attention_bias`, which is added to the scores as the canonical operators add it. The input
  `mask_index` is not used: it is wrong for a mask that is padded left or has holes. The provider wants the bias in the scores'
  own length, so a mask of keys alone is expanded, once for all layers.
- Attention has its projection inside. Where a weight is quantised the projections stay MatMul, three of them, and
  MultiHeadAttention follows.
- Norms inside these kernels compute mean and variance in float32 whatever their type is.
- What is not in the table is inlined as its canonical body: GroupNormalization has no CUDA kernel, and no body writes it.

All of these operators have float32 kernels on the CPU, which is how the fusions are proven and the typed graph is verified, but
for those of packed tokens (`lower_packed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from ...graph import DOMAIN, Graph, drop_unused_initializers
from ...ops import BODIES, EPSILON, Body, expand, padded_inputs
from ...ops import constant as made_constant
from .._fourier import rewrite_fourier
from .._tensorrt.layout import drop_count, drop_expands
from .._tensorrt.lower_common import lazy_weight
from . import lower_attention as attention
from . import lower_packed as packed
from .contrib import contrib, counts_from_0, of_rank, same_shape
from .flat_tokens import flatten_tokens
from .shapes import slice_first_rows, start_ranges_late
from .tiles import rewrite_tiles, untiled

SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def lower(graph: Graph, *, quantised: bool = False) -> Graph:
    """Standard and com.microsoft operators; of a graph without `bertc` nodes a Tile or a DFT alone may change."""
    if not any(node.domain == DOMAIN for node in graph.model.graph.all_nodes()):
        if not any(untiled(node, graph.opset) or node.op_type == "DFT" for node in graph.model.graph.all_nodes()):
            return graph
        copy = graph.copy()
        rewrite_tiles(copy.model)
        rewrite_fourier(copy.model)
        return copy
    lowered = expand(graph, lowerings(quantised=quantised))
    for node in lowered.model.graph.all_nodes():
        _leave_out(node)
    CommonSubexpressionEliminationPass()(lowered.model)  # the expanded mask, the positions
    start_ranges_late(lowered.model.graph)
    slice_first_rows(lowered.model.graph)
    rewrite_tiles(lowered.model)
    rewrite_fourier(lowered.model)
    # A mask's low is a number that fp16 may replace where it is an initializer.
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lowered.model)
    if any(node.op_type == packed.LAYOUT for node in graph.model.graph):
        flatten_tokens(lowered.model)
    drop_count(lowered.model.graph)
    drop_expands(lowered.model.graph)
    RemoveUnusedNodesPass()(lowered.model)
    drop_unused_initializers(lowered.model.graph)
    return lowered


def _leave_out(node: ir.Node) -> None:
    """The mean and the deviation before the sum of a SkipLayerNormalization are not asked for."""
    for value in node.outputs[1:-1] if node.op_type in SKIP_NORMS else ():
        value.name = ""


def lowerings(*, quantised: bool = False) -> Mapping[str, Body]:
    """Operator -> lowering; the projections of attention apart where they are quantised."""
    apart = {"FusedAttention": attention.projected_apart, "FusedPackedAttention": packed.projected_apart}
    return {**LOWERINGS, **(apart if quantised else {})}


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedEmbeddings as EmbedLayerNormalization, which wants a table of positions; types that are not given are row 0."""
    ids, positions, types, word, position, type_, gamma, beta = padded_inputs(node, 8)
    if position is None or beta is None or not of_rank(ids, 2):
        return BODIES[node.op_type](op, node)
    if types is None and type_ is not None:
        position, type_ = _with_row_0(op, node, position, type_), None
    given = [_int32(op, ids), None if types is None else _int32(op, types), word, position, type_, gamma, beta]
    places = [] if positions is None or counts_from_0(positions) else [None, _int32(op, positions)]
    epsilon = node.attributes.get_float("epsilon", EPSILON)
    # Its type inference wants the second output to be there, which counts the tokens of a mask.
    made, counted = contrib(op, "EmbedLayerNormalization", *given, *places, like=node.outputs[0], outputs=2, epsilon=epsilon)
    counted.type, counted.shape = ir.TensorType(ir.DataType.INT32), None
    return [made]


def _with_row_0(op: Any, node: ir.Node, position: ir.Value, type_: ir.Value) -> ir.Value:
    """The table of positions with the type of all tokens added."""
    table, first = position.const_value, type_.const_value
    if table is None or first is None:
        zero = made_constant(op, 0, np.int64)
        return op.Add(position, op.Gather(type_, zero))
    shape = table.shape.numpy()
    return lazy_weight(op, f"{node.name}/position", shape, lambda: table.numpy() + first.numpy()[0])


def _int32(op: Any, value: ir.Value) -> ir.Value:
    return value if value.dtype == ir.DataType.INT32 else op.Cast(value, to=ir.DataType.INT32)


def skip_layernorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipLayerNorm as SkipLayerNormalization; the sum is its output 3."""
    x, skip, b, gamma, beta = padded_inputs(node, 5)
    return _skip_norm(op, node, "SkipLayerNormalization", [x, skip, gamma, beta, b])


def skip_rmsnorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipRmsNorm as SkipSimplifiedLayerNormalization."""
    x, skip, b, gamma = padded_inputs(node, 4)
    return _skip_norm(op, node, "SkipSimplifiedLayerNormalization", [x, skip, gamma, b])


def _skip_norm(op: Any, node: ir.Node, kind: str, given: list[Any]) -> Sequence[ir.Value]:
    x, skip = given[:2]
    if not of_rank(x, 2, 3) or not same_shape(x, skip):
        return BODIES[node.op_type](op, node)
    while given[-1] is None:
        given.pop()
    like, epsilon = node.outputs[0], node.attributes.get_float("epsilon", EPSILON)
    if len(node.outputs) == 1:
        return [contrib(op, kind, *given, like=like, epsilon=epsilon)]
    made = contrib(op, kind, *given, like=like, outputs=4, epsilon=epsilon)
    return [made[0], made[3]]


def bias_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedBiasGelu as BiasGelu, FastGelu or QuickGelu by its form."""
    x, b = padded_inputs(node, 2)
    form = node.attributes.get_string("form", "erf")
    if form == "quick":
        return [contrib(op, "QuickGelu", op.Add(x, b), like=node.outputs[0], alpha=1.702)]
    if form not in ("erf", "tanh"):
        return BODIES[node.op_type](op, node)  # which says what is wrong with it
    return [contrib(op, "BiasGelu" if form == "erf" else "FastGelu", x, b, like=node.outputs[0])]


def gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedGelu of form "quick" as QuickGelu; the others are ONNX's own."""
    if node.attributes.get_string("form", "erf") != "quick":
        return BODIES[node.op_type](op, node)
    return [contrib(op, "QuickGelu", node.inputs[0], like=node.outputs[0], alpha=1.702)]


# What is not here is inlined as its canonical body.
LOWERINGS: Mapping[str, Body] = {
    "FusedEmbeddings": embeddings,
    "FusedSkipLayerNorm": skip_layernorm,
    "FusedSkipRmsNorm": skip_rmsnorm,
    "FusedBiasGelu": bias_gelu,
    "FusedGelu": gelu,
    "FusedAttention": attention.attention,
    "FusedRotaryAttention": attention.rotary_attention,
    "FusedCrossAttention": attention.cross_attention,
    "FusedPastAttention": attention.past_attention,
    "FusedDisentangledAttention": attention.disentangled_attention,
    "FusedPackedLayout": packed.layout,
    "FusedRemovePadding": packed.remove_padding,
    "FusedRestorePadding": packed.restore_padding,
    "FusedPackedAttention": packed.attention,
}
