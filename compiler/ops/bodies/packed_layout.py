"""FusedPackedLayout: which positions of a padded batch are kept, row after row, the longest row first.

FusedPackedLayout(mask [B,S]; from_start) -> tokens [T] int64, ends [B+1] int64

A row is kept from its first to its last position that is not masked, so that padding goes and a hole stays. A row with nothing in
it is kept whole: it is what the model makes of it. With `from_start` a row is cut at its end alone, and kept whole where position
0 is masked: a head that reads that position, and a causal mask, see there what they did. `tokens` are indices into [B*S]; the row
in place i has tokens[ends[i]:ends[i+1]].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import constant

OP = "FusedPackedLayout"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    zero, one = constant(op, 0, np.int64), constant(op, 1, np.int64)
    live = op.Cast(op.Cast(node.inputs[0], to=ir.DataType.BOOL), to=ir.DataType.INT64)
    shape = op.Shape(live)
    last = op.ArgMax(live, axis=1, keepdims=0, select_last_index=1)  # S - 1 where there is none
    first = op.ArgMax(live, axis=1, keepdims=0)
    if node.attributes.get_int("from_start", 0):
        last = op.Where(op.Equal(first, zero), last, op.Sub(op.Gather(shape, one), one))
        first = op.Mul(first, zero)
    lengths, rows = op.TopK(op.Add(op.Sub(last, first), one), op.Slice(shape, *_at(op, 0)), axis=0, _outputs=2)
    length = op.Gather(shape, one)
    inside = op.Less(op.Unsqueeze(op.Range(zero, length, one), _axis(op, 0)), op.Unsqueeze(lengths, _axis(op, 1)))
    row, place = op.Split(op.NonZero(inside), axis=0, num_outputs=2, _outputs=2)
    starts = op.Gather(op.Add(op.Mul(rows, length), op.Gather(first, rows)), op.Squeeze(row, _axis(op, 0)))
    ends = op.Concat(constant(op, [0], np.int64), op.CumSum(lengths, zero), axis=0)
    return [op.Add(starts, op.Squeeze(place, _axis(op, 0))), ends]


def _at(op: Any, index: int) -> tuple[ir.Value, ir.Value]:
    return constant(op, [index], np.int64), constant(op, [index + 1], np.int64)


def _axis(op: Any, axis: int) -> ir.Value:
    return constant(op, [axis], np.int64)
