"""Products with something fused to them: FusedMatMul, FusedGemm, FusedConv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...ops import constant, padded_inputs
from ._pieces import activated, flag, rank, swapped

GEMM = {"alpha": 1.0, "beta": 1.0}
CONV = ("dilations", "kernel_shape", "pads", "strides")


def fused_matmul(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(a, b; alpha, transA, transB, transBatchA, transBatchB) -> alpha * a' b'"""
    a, b = (_turned(op, node, index, letter) for index, letter in enumerate("AB"))
    product, alpha = op.MatMul(a, b), node.attributes.get_float("alpha", 1.0)
    return [product if alpha == 1 else op.Mul(product, constant(op, alpha))]


def _turned(op: Any, node: ir.Node, index: int, letter: str) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    if flag(node, f"transBatch{letter}"):  # the first axis becomes the last but one
        value = op.Transpose(value, perm=[*range(1, (last := rank(value) - 1)), 0, last])
        value.shape = ir.Shape([None] * (last + 1))
    return swapped(op, value) if flag(node, f"trans{letter}") else value


def fused_gemm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(a, b, c?; alpha, beta, transA, transB, activation ...)"""
    given = {name: node.attributes.get_float(name, default) for name, default in GEMM.items()}
    turned = {name: node.attributes.get_int(name, 0) for name in ("transA", "transB")}
    made = op.Gemm(*[value for value in node.inputs if value is not None], **given, **turned)
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    return [activated(op, made, node, [node.attributes.get_float(n) for n in names if n in node.attributes])]


def fused_conv(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """(x, w, b?, z?; of Conv, activation, activation_params) -> activation(conv + z)"""
    x, w, b, z = padded_inputs(node, 4)[:4]
    given: dict[str, Any] = {name: list(node.attributes.get_ints(name)) for name in CONV if name in node.attributes}
    given["group"] = node.attributes.get_int("group", 1)
    if "auto_pad" in node.attributes:
        given["auto_pad"] = node.attributes.get_string("auto_pad")
    made = op.Conv(*[value for value in (x, w, b) if value is not None], **given)
    made = made if z is None else op.Add(made, z)
    return [activated(op, made, node, list(node.attributes.get_floats("activation_params", [])))]


BODIES = {"FusedMatMul": fused_matmul, "TransposeMatMul": fused_matmul, "FusedGemm": fused_gemm, "FusedConv": fused_conv}
