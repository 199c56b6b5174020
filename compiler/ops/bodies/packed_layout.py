"""FusedPackedLayout: which positions of a padded batch are kept, row after row, the longest row first.

FusedPackedLayout(mask [B,S]; from_start) -> tokens [T] int64, ends [B+1] int64, rows [T] int64, places [T] int64

A row is kept where it is not masked, so that padding and holes go. With `from_start` it is kept from position 0 to its last that
is not masked, and whole where position 0 is: a head that reads that position, and a mask by position, see there what they did. A
row with nothing in it is kept whole. `tokens` are indices into [B*S], `rows` and `places` those into B and S; the row in place i
has tokens[ends[i]:ends[i+1]].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import constant
from ..declared import given_inputs

OP = "FusedPackedLayout"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    shape = op.Shape(given_inputs(node, 1)[0])
    kept = kept_positions(op, node)
    counts = op.ReduceSum(op.Cast(kept, to=ir.DataType.INT64), constant(op, [1], np.int64), keepdims=0)
    lengths, order = op.TopK(counts, op.Slice(shape, *(constant(op, [at], np.int64) for at in (0, 1))), axis=0, _outputs=2)
    both = op.NonZero(op.Gather(kept, order))
    row, places = (op.Squeeze(part, constant(op, [0], np.int64)) for part in op.Split(both, axis=0, num_outputs=2, _outputs=2))
    rows = op.Gather(order, row)
    tokens = op.Add(op.Mul(rows, op.Gather(shape, constant(op, 1, np.int64))), places)
    ends = op.Concat(constant(op, [0], np.int64), op.CumSum(lengths, constant(op, 0, np.int64)), axis=0)
    return [tokens, ends, rows, places][: len(node.outputs)]


def kept_positions(op: Any, node: ir.Node) -> ir.Value:
    """[B,S] bool: what a FusedPackedLayout keeps."""
    live = op.Cast(op.Cast(node.inputs[0], to=ir.DataType.BOOL), to=ir.DataType.INT32)
    if not node.attributes.get_int("from_start", 0):
        any_ = op.ReduceMax(live, constant(op, [1], np.int64), keepdims=1)
        return op.Equal(live, any_)  # a row of none is the same throughout, too
    one = constant(op, 1, np.int64)
    later = op.Cast(op.CumSum(live, one, reverse=1), to=ir.DataType.BOOL)
    first = op.Slice(live, *(constant(op, [at], np.int64) for at in (0, 1, 1)))
    return op.Or(later, op.Not(op.Cast(first, to=ir.DataType.BOOL)))
