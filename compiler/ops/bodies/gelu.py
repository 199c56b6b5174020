"""FusedGelu: gelu(x), for the forms and the opsets that have no Gelu of their own.

FusedGelu(x [...,N]; form "erf" | "tanh" | "quick") -> [...,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import gelu
from ..declared import given_inputs

OP = "FusedGelu"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    (x,) = given_inputs(node, 1)
    return [gelu(op, x, node.attributes.get_string("form", "erf"))]
