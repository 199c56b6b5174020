"""Attention over packed tokens by a kernel of ours: no key of another row, and no padding, is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import constant as made_constant
from ...ops import padded_inputs
from ...packing import of_keys_alone
from .lower_common import Parts
from .lower_packed import attention as padded_attention
from .lower_packed import project, projections
from .plugin_writer import left, plugin

SMALLEST, LARGEST, STEP = 16, 128, 8  # heads that the kernel is written for


def packed_attention(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedPackedAttention: projections, the kernel, the output projection. A mask of keys goes in token by token.

    A mask that differs between queries (positions, a window, causal) is no matter of keys: there attention alone is padded.
    """
    _, mask, _, _, _, _, tokens, ends, grid, *_ = padded_inputs(node, 11)
    parts = Parts(node)
    if mask is not None and not of_keys_alone(mask):
        return left(op, node, padded_attention(op, node), "its mask differs between queries, which the kernel has no form of")
    if parts.size % STEP or not SMALLEST <= parts.size <= LARGEST:
        why = f"heads of {parts.size}; the kernel takes {SMALLEST} to {LARGEST} in steps of {STEP}"
        return left(op, node, padded_attention(op, node), why)
    apart = made_constant(op, [-1, 3, parts.heads, parts.size], np.int64)
    given = {
        "qkv": op.Reshape(projections(op, node, parts), apart),
        "cu_seqlens": ends,
        "bias": None,
        "keys": None if mask is None else _of_keys(op, mask, tokens, grid),
    }
    # The queries have their scale. The kernel takes 0 for 1 / sqrt(size), so it is told 1.
    meaning = {"operator": "packed tokens"}
    shape = ir.Shape([None, parts.heads, parts.size])
    (context,) = plugin(op, node, "packed_attention", given, ["out"], shape, meaning, scale=1.0)
    return [project(op, node, op.Reshape(context, made_constant(op, [-1, parts.heads * parts.size], np.int64)))]


def _of_keys(op: Any, mask: ir.Value, tokens: ir.Value, grid: ir.Value) -> ir.Value:
    """[T]: what a mask [B or 1,1,1,S] adds to the scores of each token."""
    one = made_constant(op, [1, 1], np.int64)
    whole = op.Concat(op.Shape(grid, start=0, end=1), one, op.Shape(grid, start=1, end=2), axis=0)
    return op.Gather(op.Reshape(op.Expand(mask, whole), made_constant(op, [-1], np.int64)), tokens, axis=0)
