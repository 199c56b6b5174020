"""FusedRotary: places as rotations of pairs of numbers, one from each half of a head.

FusedRotary(x [B,h,S,d], cos [1|B,1,S,d], sin [1|B,1,S,d]) -> [B,h,S,d]: x * cos + (-second half, first half) * sin
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..declared import given_inputs

OP = "FusedRotary"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, cos, sin = given_inputs(node, 3)
    return [rotate(op, x, cos, sin)]


def rotate(op: Any, x: Any, cos: Any, sin: Any) -> ir.Value:
    """Along the last axis; cos and sin broadcast to x."""
    first, second = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    turned = op.Concat(op.Neg(second), first, axis=-1)
    return op.Add(op.Mul(x, cos), op.Mul(turned, sin))
