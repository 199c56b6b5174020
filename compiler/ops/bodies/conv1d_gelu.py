"""FusedConv1dGelu: norm "group" has one group a channel, which is an instance norm; "layer" normalises over channels.

FusedConv1dGelu(x [B,C,T], W, b?, gamma?, beta?; strides, pads, dilations, group, norm "none" | "group" | "layer", epsilon,
                form) -> [B,C2,T2]

What a model cuts off behind the convolution (one place, where the kernel is even) is padding that is not there: pads [64, 63].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...core import InputError, did_you_mean
from ..builder import EPSILON, gelu, layer_norm
from ..declared import given_inputs

OP = "FusedConv1dGelu"


def body(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    x, w, b, gamma, beta = given_inputs(node, 5)
    get = node.attributes
    made = op.Conv(
        *([x, w] if b is None else [x, w, b]),
        strides=list(get.get_ints("strides", [1])),
        pads=list(get.get_ints("pads", [0, 0])),
        dilations=list(get.get_ints("dilations", [1])),
        group=get.get_int("group", 1),
    )
    norm, epsilon = get.get_string("norm", "none"), get.get_float("epsilon", EPSILON)
    if norm == "group":
        made = op.InstanceNormalization(made, gamma, beta if beta is not None else op.Sub(gamma, gamma), epsilon=epsilon)
    elif norm == "layer":
        made = op.Transpose(layer_norm(op, op.Transpose(made, perm=[0, 2, 1]), gamma, beta, epsilon), perm=[0, 2, 1])
    elif norm != "none":
        raise InputError(f"FusedConv1dGelu {node.name!r} has norm {norm!r}{did_you_mean(norm, ['none', 'group', 'layer'])}")
    return [gelu(op, made, get.get_string("form", "erf"))]
