"""The masks that Attention and MultiHeadAttention take, in every form, as what is added to the scores [B,h,S,T]."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ...ops import constant
from ._pieces import INT64, additive, count, integers, rank

LOWEST = float(np.finfo(np.float32).min)
LOW = -10000.0  # mask_filter_value, where a node has none


def score_mask(
    op: Any, node: ir.Node, mask: ir.Value | None, batch: ir.Value, queries: ir.Value, keys: ir.Value
) -> ir.Value | None:
    """What is added to the scores for the mask and `unidirectional`, None where nothing is. Sizes are vectors of one."""
    low = node.attributes.get_float("mask_filter_value", LOW)
    added = None if mask is None else additive(op, _kept(op, mask, batch, keys), low)
    if not node.attributes.get_int("unidirectional", 0):
        return added
    # A query whose own keys are all masked still sees no later one: these are lower than any mask.
    return op.Where(_causal(op, queries, keys), constant(op, 0.0) if added is None else added, constant(op, LOWEST))


def _kept(op: Any, mask: ir.Value, batch: ir.Value, keys: ir.Value) -> ir.Value:
    """Truth values: [B,T] and [B,S,T] of numbers above 0; lengths [B], or ends and starts [2B]."""
    dims = rank(mask)
    if dims == 1:
        return _between(op, op.Cast(mask, to=int(ir.DataType.INT64)), batch, keys)
    if dims not in (2, 3):
        raise InputError(f"a mask of rank {dims} has no expansion")
    keep = op.Greater(mask, op.CastLike(op.Constant(value=ir.tensor(np.array(0, np.int32))), mask))
    return op.Unsqueeze(keep, integers(op, 1, 2) if dims == 2 else integers(op, 1))


def _between(op: Any, marks: ir.Value, batch: ir.Value, keys: ir.Value) -> ir.Value:
    """From start to end of each row. Zeros stand behind the ends where there are no starts."""
    columns, row = integers(op, 1, 2, 3), op.Unsqueeze(count(op, keys), integers(op, 0, 1, 2))
    zeros = op.Expand(op.Constant(value=ir.tensor(np.array([0], INT64))), batch)
    both = op.Concat(marks, zeros, axis=0)
    ends = op.Slice(both, integers(op, 0), batch, integers(op, 0))
    starts = op.Slice(both, batch, op.Add(batch, batch), integers(op, 0))
    return op.And(op.Less(row, op.Unsqueeze(ends, columns)), op.GreaterOrEqual(row, op.Unsqueeze(starts, columns)))


def _causal(op: Any, queries: ir.Value, keys: ir.Value) -> ir.Value:
    """Query i, which stands behind T - S earlier ones, sees keys 0 .. T - S + i."""
    at = op.Add(count(op, queries), op.Sub(keys, queries))
    return op.LessOrEqual(
        op.Unsqueeze(count(op, keys), integers(op, 0, 1, 2)), op.Unsqueeze(at, integers(op, 0, 1, 3))
    )  # fmt: skip
