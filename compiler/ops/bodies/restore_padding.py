"""FusedRestorePadding: packed tokens at their positions of the padded batch again, zeros at padding.

FusedRestorePadding(x [1,T,...], tokens [T], rows [T], places [T], grid [B,S]) -> [B,S,...]

`tokens`, `rows` and `places` are those of a FusedPackedLayout of a mask of `grid`'s shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import constant
from ..declared import given_inputs

OP = "FusedRestorePadding"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, tokens, _, _, grid = given_inputs(node, 5)
    shape, rest = op.Shape(grid), op.Shape(x, start=2)
    empty = op.Expand(constant(op, 0.0), op.Concat(op.ReduceProd(shape), rest, axis=0))
    index = op.Unsqueeze(tokens, constant(op, [1], np.int64))
    filled = op.ScatterND(empty, index, op.Squeeze(x, constant(op, [0], np.int64)))
    return [op.Reshape(filled, op.Concat(shape, rest, axis=0))]
