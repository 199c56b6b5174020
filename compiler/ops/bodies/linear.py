"""FusedLinear: x @ W + b.

FusedLinear(x [...,K], W [K,N], b [N]?) -> [...,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import add_all
from ..declared import given_inputs

OP = "FusedLinear"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, w, b = given_inputs(node, 3)
    return [add_all(op, op.MatMul(x, w), b)]
