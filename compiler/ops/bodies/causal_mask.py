"""FusedCausalMask: the queries are the last S of the T places; each sees itself and what is before it, where there is a token.

FusedCausalMask(attention_mask [B,T]?, queries int64 [1]?; low) -> [B or 1,1,S,T] float: 0 where it may be attended to, `low`
elsewhere. Without `queries`, S is T; without a mask, T is S and all places hold tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import constant
from ..declared import given_inputs

OP = "FusedCausalMask"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    mask, queries = given_inputs(node, 2, needed=0)
    low = node.attributes.get_float("low")
    if low is None or not np.isfinite(low):
        raise InputError(f"FusedCausalMask {node.name!r} has low {low}; it takes a finite number, or a fully masked row is NaN")
    if mask is None and queries is None:
        raise InputError(f"FusedCausalMask {node.name!r} has neither a mask nor a number of queries: its size is not known")
    places = queries if mask is None else op.Shape(mask, start=1, end=2)
    zero, one, shape = constant(op, 0, np.int64), constant(op, 1, np.int64), constant(op, [], np.int64)
    end = op.Reshape(places, shape)
    keys = rows = op.Range(zero, end, one)
    if mask is not None and queries is not None:
        rows = op.Range(op.Reshape(op.Sub(places, queries), shape), end, one)
    rows = op.Unsqueeze(rows, constant(op, [1], np.int64))
    seen = op.Unsqueeze(op.LessOrEqual(keys, rows), constant(op, [0, 1], np.int64))
    if mask is not None:
        held = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), constant(op, [1, 2], np.int64))
        seen = op.And(seen, held)
    return [op.Where(seen, constant(op, 0.0), constant(op, low))]
