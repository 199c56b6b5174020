"""FusedBiasGelu: gelu(x + b).

FusedBiasGelu(x [...,N], b [N]; form "erf" | "tanh" | "quick") -> [...,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import gelu
from ..declared import given_inputs

OP = "FusedBiasGelu"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, b = given_inputs(node, 2)
    return [gelu(op, op.Add(x, b), node.attributes.get_string("form", "erf"))]
