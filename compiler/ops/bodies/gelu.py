"""FusedGelu: gelu(x), for the forms and the opsets that have no Gelu of their own.

FusedGelu(x [...,N]; form "erf" | "tanh" | "quick") -> [...,N]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import gelu

OP = "FusedGelu"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    return [gelu(op, node.inputs[0], node.attributes.get_string("form", "erf"))]  # type: ignore[arg-type]
