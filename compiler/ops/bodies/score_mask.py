"""FusedScoreMask: chosen, not computed: (1 - mask) * low makes -inf * 0 of a low that is not finite.

FusedScoreMask(attention_mask [B,S]; low) -> [B,1,1,S] float: 0 where it may be attended to, `low` elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ..builder import constant
from ..declared import given_inputs

OP = "FusedScoreMask"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    (mask,) = given_inputs(node, 1)
    low = node.attributes.get_float("low")
    if low is None or not np.isfinite(low):
        raise InputError(f"FusedScoreMask {node.name!r} has low {low}; it takes a finite number, or a fully masked row is NaN")
    seen = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), constant(op, [1, 2], np.int64))
    return [op.Where(seen, constant(op, 0.0), constant(op, low))]
