"""Lowering of FusedConv1dGelu for TensorRT: its compiler makes GELU the tail of a convolution, however both are spelled.

A norm between them is spelled out (means of the values, of their squared differences): one kernel reads the convolution's
output, normalises it and applies GELU. InstanceNormalization is five kernels, a LayerNormalization between two Transposes two.
In half precision the difference from the mean is rounded as the values are; its square is a Pow, which `precision` keeps in
float32: as a product of halves it would be infinite from 256 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import EPSILON, gelu, padded_inputs
from .lower_common import constant

CHANNELS, TIME = 1, 2


def conv1d_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedConv1dGelu [B,C,T] -> [B,C2,T2]."""
    x, w, b, gamma, beta = padded_inputs(node, 5)
    get = node.attributes
    norm = get.get_string("norm", "none")
    made = op.Conv(
        *([x, w] if b is None else [x, w, b]),
        strides=list(get.get_ints("strides", [1])),
        pads=list(get.get_ints("pads", [0, 0])),
        dilations=list(get.get_ints("dilations", [1])),
        group=get.get_int("group", 1),
    )
    if norm != "none":
        made = _normalised(op, node, made, TIME if norm == "group" else CHANNELS, gamma, beta)
    return [gelu(op, made, get.get_string("form", "erf"))]


def _normalised(op: Any, node: ir.Node, x: ir.Value, axis: int, gamma: ir.Value, beta: ir.Value | None) -> ir.Value:
    axes = constant(op, node, "axes", np.array([axis], np.int64))
    centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    variance = op.ReduceMean(op.Pow(centred, constant(op, node, "two", np.float32(2))), axes, keepdims=1)
    epsilon = np.float32(node.attributes.get_float("epsilon", EPSILON))
    normal = op.Div(centred, op.Sqrt(op.Add(variance, constant(op, node, "epsilon", epsilon))))
    scaled = op.Mul(normal, _column(op, node, "gamma", gamma))
    return scaled if beta is None else op.Add(scaled, _column(op, node, "beta", beta))


def _column(op: Any, node: ir.Node, name: str, vector: ir.Value) -> ir.Value:
    assert vector.const_value is not None
    return constant(op, node, name, vector.const_value.numpy()[:, None])
