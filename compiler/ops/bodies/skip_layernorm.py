"""FusedSkipLayerNorm: the sum x + b + skip, normalised, and the sum itself where it is asked for.

FusedSkipLayerNorm(x [B,S,H], skip [B,S,H], b [H]?, gamma [H], beta [H]?; epsilon) -> y [B,S,H], sum [B,S,H]?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import EPSILON, add_all, layer_norm
from ..declared import given_inputs

OP = "FusedSkipLayerNorm"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, skip, b, gamma, beta = given_inputs(node, 5)
    total = add_all(op, x, b, skip)
    return [layer_norm(op, total, gamma, beta, node.attributes.get_float("epsilon", EPSILON)), total][: len(node.outputs)]
