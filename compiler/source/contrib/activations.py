"""Gelu in its forms, alone or behind a bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from ...ops import add_all, constant, padded_inputs

QUICK = 1.702


def _gelu(approximate: str) -> Callable[[Any, ir.Node], Sequence[ir.Value]]:
    def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
        """(x, bias?) -> gelu(x + bias)"""
        return [op.Gelu(add_all(op, *padded_inputs(node, 2)[:2]), approximate=approximate)]

    return body


def quick_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(x; alpha) -> x * sigmoid(alpha * x)"""
    x, alpha = node.inputs[0], node.attributes.get_float("alpha", QUICK)
    return [op.Mul(x, op.Sigmoid(x if alpha == 1 else op.Mul(x, constant(op, alpha))))]


BODIES = {"Gelu": _gelu("none"), "BiasGelu": _gelu("none"), "FastGelu": _gelu("tanh"), "QuickGelu": quick_gelu}
