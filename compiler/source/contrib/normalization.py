"""LayerNormalization, SimplifiedLayerNormalization (RMS), and both behind a residual sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...core import InputError
from ...ops import add_all, constant, padded_inputs
from ._pieces import integers, refuse_flags

LAYER_EPSILON, SKIP_EPSILON = 1e-5, 1e-12  # the defaults of ONNX Runtime's schemas


def layer_normalization(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(x, scale, bias?; axis, epsilon) -> y, mean?, inverse deviation?"""
    axis = node.attributes.get_int("axis", -1)
    given = [value for value in padded_inputs(node, 3)[:3] if value is not None]
    made = op.LayerNormalization(
        *given, axis=axis, epsilon=node.attributes.get_float("epsilon", LAYER_EPSILON), _outputs=max(1, len(node.outputs))
    )
    return [made] if isinstance(made, ir.Value) else [*made]


def simplified(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(x, scale; axis, epsilon) -> x / sqrt(mean(x^2) + epsilon) * scale"""
    if (axis := node.attributes.get_int("axis", -1)) != -1:
        raise InputError(f"axis {axis} has no expansion, only the last")
    x, scale = node.inputs[:2]
    return [_rms(op, x, scale, node.attributes.get_float("epsilon", LAYER_EPSILON))]


def _rms(op: Any, x: ir.Value | None, scale: ir.Value | None, epsilon: float) -> ir.Value:
    mean = op.ReduceMean(op.Pow(x, constant(op, 2.0)), integers(op, -1))
    root = op.Sqrt(op.Add(mean, constant(op, epsilon)))
    return op.Mul(op.Div(x, root), scale)


def skip_layer_normalization(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(x, skip, gamma, beta?, bias?; epsilon) -> y, -, -, the sum"""
    x, skip, gamma, beta, bias = padded_inputs(node, 5)[:5]
    total = add_all(op, x, bias, skip)
    given = [gamma] if beta is None else [gamma, beta]
    y = op.LayerNormalization(total, *given, axis=-1, epsilon=node.attributes.get_float("epsilon", SKIP_EPSILON))
    return [y, None, None, total]


def skip_simplified(op: Any, node: ir.Node) -> Sequence[ir.Value | None]:
    """(x, skip, gamma, bias?; epsilon) -> y, -, -, the sum"""
    refuse_flags(node, "simplified")
    x, skip, gamma, bias = padded_inputs(node, 4)[:4]
    total = add_all(op, x, bias, skip)
    return [_rms(op, total, gamma, node.attributes.get_float("epsilon", SKIP_EPSILON)), None, None, total]


BODIES = {
    "LayerNormalization": layer_normalization,
    "SimplifiedLayerNormalization": simplified,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_simplified,
}
