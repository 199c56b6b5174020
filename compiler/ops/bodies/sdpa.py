"""FusedSdpa: softmax(q k_t * scale + mask) v.

FusedSdpa(q [B,h,S,d], k_t [B,h,d,T], v [B,h,T,d], mask? broadcast to [B,h,S,T], added; scale) -> [B,h,S,d]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import scaled_dot_product
from ..declared import given_inputs

OP = "FusedSdpa"
MASK_INPUT = 3  # the input that is added to the scores


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    q, k_t, v, mask = given_inputs(node, 4)
    return [scaled_dot_product(op, q, k_t, v, mask, node.attributes.get_float("scale", 1.0))]
