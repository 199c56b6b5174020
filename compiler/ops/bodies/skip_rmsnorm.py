"""FusedSkipRmsNorm: RMSNormalization is of opset 23, so it is spelled out.

FusedSkipRmsNorm(x, skip, b?, gamma; epsilon) -> y, sum?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..builder import EPSILON, add_all, constant
from ..declared import given_inputs

OP = "FusedSkipRmsNorm"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, skip, b, gamma = given_inputs(node, 4)
    total = add_all(op, x, b, skip)
    mean = op.ReduceMean(op.Mul(total, total), constant(op, [-1], np.int64), keepdims=1)
    root = op.Sqrt(op.Add(mean, constant(op, node.attributes.get_float("epsilon", EPSILON))))
    return [op.Mul(op.Div(total, root), gamma), total][: len(node.outputs)]
