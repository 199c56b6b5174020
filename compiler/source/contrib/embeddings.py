"""EmbedLayerNormalization: the sum of up to three lookups, normalised, and the length of each row's mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import add_all, constant, padded_inputs
from ._pieces import count, integers, size
from .normalization import SKIP_EPSILON


def embed_layer_normalization(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(ids, segments?, word, position, segment?, gamma, beta, mask?, positions?; epsilon) -> y, lengths?, sum?"""
    ids, segments, word, position, segment, gamma, beta, mask, positions = padded_inputs(node, 9)[:9]
    here = op.Gather(position, _counted(op, ids, position) if positions is None else positions)
    total = add_all(op, op.Gather(word, ids), here, None if segment is None else op.Gather(segment, segments))
    y = op.LayerNormalization(
        total, gamma, beta, axis=-1, epsilon=node.attributes.get_float("epsilon", SKIP_EPSILON)
    )  # fmt: skip
    return [y, _lengths(op, ids, mask), total][: len(node.outputs)]


def _counted(op: Any, ids: ir.Value, position: ir.Value) -> ir.Value:
    """0 .. S-1: of a constant where the table is one, so that a length beyond the table fails."""
    if position.const_value is None:
        return count(op, size(op, ids, 1))
    every = constant(op, np.arange(position.const_value.shape.numpy()[0]), np.int64)
    return op.Slice(every, integers(op, 0), size(op, ids, 1), integers(op, 0))


def _lengths(op: Any, ids: ir.Value, mask: ir.Value | None) -> ir.Value:
    """How many ones each row of the mask has, 0 without one: int32 [B]."""
    if mask is None:
        return op.Expand(constant(op, [0], np.int32), size(op, ids, 0))
    ones = op.Cast(op.Equal(mask, op.CastLike(constant(op, 1, np.int32), mask)), to=int(ir.DataType.INT32))
    return op.ReduceSum(ones, integers(op, 1), keepdims=0)


BODIES = {"EmbedLayerNormalization": embed_layer_normalization}
