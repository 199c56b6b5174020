"""Lowerings for TensorRT and TensorRT-RTX: linear, GELU, norms, embeddings, score masks, self-attention; the table of all.

Each operator takes the form that their compiler makes the fewest kernels of.

Activations run length-first ([S,B,H]): the fused attention kernel then reads q, k and v where the projection left them, and no
transposition is left. Each lowering takes and gives batch-first values, with a Transpose at every border; `layout.tidy` takes
out the pairs that meet, so no operator has to know its neighbours.

The bias algebra of attention is exact (benchmarks/bench_kernels.py shows what each step saves):
    the key's bias adds the same number to every score of a row, which softmax does not see: dropped;
    the rows of a softmax sum to 1, so the value's bias passes through it whole: bo += bv @ Wo;
    the scale is multiplied into Wq and bq.
What is left is the query's bias. Added behind the transposition it costs one kernel over q alone; before it, one for each of q, k
and v; on the packed projection, one over all three. A query bias of zero costs nothing: 7 kernels a layer instead of 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import Body, padded_inputs
from ...ops.bodies import attention as packed
from ...ops.bodies import embeddings as lookups
from . import lower_decoder as lower_past
from . import lower_disentangled as lower_positions
from . import lower_packed
from .lower_common import ALIGNED, LARGEST, SWAP, TURING, Parts, attend_and_project, constant, layout_swap, present
from .lower_conv import conv1d_gelu
from .quantised_check import ATTENTION


def linear(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedLinear: MatMul and Add, which fuse into one kernel (Gemm and MatMul count the same)."""
    x, w, b = padded_inputs(node, 3)
    turn = layout_swap(op, x)
    y = op.MatMul(turn(x), w)
    return [turn(y if b is None else op.Add(y, b))]


def bias_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedBiasGelu: becomes the tail of the projection before it; how GELU is spelled is indifferent."""
    x, b = padded_inputs(node, 2)
    turn = layout_swap(op, x)
    form = node.attributes.get_string("form", "erf")
    y = op.Add(turn(x), b)
    if form == "quick":
        return [turn(op.Mul(y, op.Sigmoid(op.Mul(y, constant(op, node, "factor", np.float32(1.702))))))]
    return [turn(op.Gelu(y, approximate="none" if form == "erf" else "tanh"))]


def skip_layernorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedSkipLayerNorm: bias, residual and norm are one kernel in any order; the sum is a second output of it."""
    x, skip, b, gamma, beta = padded_inputs(node, 5)
    turn = layout_swap(op, x, skip)
    y = turn(x) if b is None else op.Add(turn(x), b)
    total = op.Add(y, turn(skip))
    made = op.LayerNormalization(*present(total, gamma, beta), axis=-1, epsilon=node.attributes.get_float("epsilon", 1e-5))
    return [turn(made), turn(total)] if len(node.outputs) > 1 else [turn(made)]


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedEmbeddings: ids are transposed, not vectors: then the lookups, sums and norm stay one kernel."""
    ids, positions, types, word, position, kind, gamma, beta = padded_inputs(node, 8)
    if len(ids.shape) != 2:
        return lookups.body(op, node)
    total = op.Gather(word, op.Transpose(ids, perm=[1, 0]), axis=0)
    if kind is not None and types is not None:
        total = op.Add(total, op.Gather(kind, op.Transpose(types, perm=[1, 0]), axis=0))
    elif kind is not None:
        total = op.Add(total, op.Gather(kind, constant(op, node, "type", np.int64(0)), axis=0))
    if position is not None:
        total = op.Add(total, _positions(op, node, ids, positions, position))
    made = op.LayerNormalization(*present(total, gamma, beta), axis=-1, epsilon=node.attributes.get_float("epsilon", 1e-5))
    return [op.Transpose(made, perm=SWAP)]


def _positions(op: Any, node: ir.Node, ids: ir.Value, positions: ir.Value | None, table: ir.Value) -> ir.Value:
    """[S,1,H] or [S,B,H]: given positions, or 0, 1, 2, ..."""
    if positions is not None and len(positions.shape) == 2:  # type: ignore[arg-type]
        return op.Gather(table, op.Transpose(positions, perm=[1, 0]), axis=0)
    if positions is not None:
        rows = op.Gather(table, positions, axis=0)
    else:
        zero, one = (constant(op, node, name, np.array([n], np.int64)) for name, n in (("zero", 0), ("one", 1)))
        rows = op.Slice(table, zero, op.Shape(ids, start=1, end=2), zero, one)
    return op.Unsqueeze(rows, constant(op, node, "middle", np.array([1], np.int64)))


def score_mask(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedScoreMask: a float mask built once is one kernel for the whole network (a boolean one is 8).

    The numbers are initializers, not Constant nodes: the typing pass gives `low` a stand-in that float16 can hold.
    """
    low = node.attributes["low"].as_float()
    seen = op.Cast(node.inputs[0], to=ir.DataType.BOOL)
    chosen = op.Where(seen, constant(op, node, "seen", np.float32(0)), constant(op, node, "unseen", np.float32(low)))
    return [op.Unsqueeze(chosen, constant(op, node, "axes", np.array([1, 2], np.int64)))]


def attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention: three projections without bias become one batched kernel; the query's bias stands behind its Transpose."""
    x, mask, *_ = padded_inputs(node, 6)
    parts = Parts(node, range(ALIGNED, LARGEST, ALIGNED))
    if parts.width % ALIGNED or len(x.shape) != 3:
        return packed_attention(op, node)
    turned, split = op.Transpose(x, perm=SWAP), constant(op, node, "split", np.array([0, 0, parts.heads, parts.width], np.int64))
    q, k, v = (
        op.Transpose(op.Reshape(op.MatMul(turned, parts.weight(op, name)), split), perm=perm)
        for name, perm in (("q", (1, 2, 0, 3)), ("k", (1, 2, 3, 0)), ("v", (1, 2, 0, 3)))
    )
    bias = parts.query_bias()
    if bias is not None:
        q = op.Add(q, constant(op, node, "q_bias", bias.reshape(1, parts.heads, 1, parts.width)))
    return [attend_and_project(op, node, parts, q, k, v, mask, parts.output_bias())]


def packed_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention where the compiler has to copy q, k and v anyway (Turing, odd head sizes): one projection, one copy."""
    return _packed(op, node, ())


def quantised_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedAttention in the packed form, its heads as wide as those that an int8 kernel is made for."""
    return _packed(op, node, ATTENTION.sizes)


def _packed(op: Any, node: ir.Node, widths: Iterable[int]) -> Sequence[ir.Value]:
    x, mask, _, bias, _, out_bias = padded_inputs(node, 6)
    if len(x.shape) != 3:
        return packed.body(op, node)
    parts = Parts(node, widths)
    y = op.MatMul(op.Transpose(x, perm=SWAP), parts.weight(op, "qkv"))
    if bias is not None:
        y = op.Add(y, constant(op, node, "qkv_bias", parts.packed_bias()))
    heads = op.Reshape(y, constant(op, node, "split", np.array([0, 0, 3 * parts.heads, parts.width], np.int64)))
    q, k, v = op.Split(heads, axis=2, num_outputs=3, _outputs=3)
    q, k, v = (op.Transpose(t, perm=perm) for t, perm in ((q, (1, 2, 0, 3)), (k, (1, 2, 3, 0)), (v, (1, 2, 0, 3))))
    return [attend_and_project(op, node, parts, q, k, v, mask, None if out_bias is None else out_bias.const_value.numpy())]


LOWERINGS: Mapping[str, Body] = {
    "FusedLinear": linear,
    "FusedBiasGelu": bias_gelu,
    "FusedSkipLayerNorm": skip_layernorm,
    "FusedEmbeddings": embeddings,
    "FusedScoreMask": score_mask,
    "FusedAttention": attention,
    "FusedConv1dGelu": conv1d_gelu,
}


def lowerings(sms: Sequence[str] = (), quantised: bool = False) -> Mapping[str, Body]:
    """The table for these SMs: Turing's attention kernel copies its operands either way, so there the packed form is cheaper.

    So it is for a graph that is quantised: an int8 GEMM scales its result in the next kernel, and of three there is one (with
    scales per channel 12 kernels a layer, packed 10; in float16 both are 8).
    """
    table = {**LOWERINGS, **lower_positions.LOWERINGS, **lower_past.LOWERINGS, **lower_packed.LOWERINGS}
    if quantised:
        return {**table, "FusedAttention": quantised_attention}
    return {**table, "FusedAttention": packed_attention} if TURING in sms else table
