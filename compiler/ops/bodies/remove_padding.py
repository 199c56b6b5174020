"""FusedRemovePadding: a value of a padded batch, read token by token.

FusedRemovePadding(x [B,S,...], tokens [T], rows [T], places [T], grid [B,S]; spread) -> [1,T,...]

`tokens`, `rows` and `places` are those of a FusedPackedLayout of a mask of `grid`'s shape. With spread "positions" x is
[1,S,...], the same for all rows; with spread "rows" it is [B,1,...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import constant
from ..declared import given_inputs

OP = "FusedRemovePadding"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, tokens, rows, places, _ = given_inputs(node, 5)
    spread = node.attributes.get_string("spread", "")
    index = {"positions": places, "rows": rows}.get(spread, tokens)
    flat = op.Reshape(x, op.Concat(constant(op, [-1], np.int64), op.Shape(x, start=2), axis=0))
    return [op.Unsqueeze(op.Gather(flat, index), constant(op, [0], np.int64))]
