"""A convolution with its norm and GELU by a kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ops import EPSILON, padded_inputs
from .lower_common import lazy_weight
from .lower_conv import conv1d_gelu as lowered
from .plugin_writer import left, plugin

KERNELS = {"none": "conv1d_gelu", "layer": "conv1d_layernorm_gelu"}
WIDEST = 1024  # channels that one program normalises
TURNED = (2, 1, 0)


def conv1d_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """FusedConv1dGelu without a norm, or with one over channels. The kernel wants its weights [K, C/group, C2].

    A norm over time is two kernels with a float32 value between them, which a graph of one half-precision type has no place for.
    """
    x, w, b, gamma, beta = padded_inputs(node, 5)
    get = node.attributes
    norm, group, made = get.get_string("norm", "none"), get.get_int("group", 1), int(w.shape[0])
    if why := _why_not(norm, group, made, w):
        return left(op, node, lowered(op, node), why)
    (stride,), (dilation,) = (get.get_ints(name, [1]) for name in ("strides", "dilations"))
    pad, pad_end = get.get_ints("pads", [0, 0])
    canonical = {name: each.value for name, each in get.items()}
    tensor, shape = w.const_value, tuple(int(w.shape[axis]) for axis in TURNED)
    turned = lazy_weight(op, f"{node.name}/w", shape, lambda: np.transpose(tensor.numpy(), TURNED))
    given = {"x": x, "w": turned, "b": b, **({"gamma": gamma, "beta": beta} if norm == "layer" else {})}
    attributes: dict[str, Any] = {"stride": stride, "pad": pad, "pad_end": pad_end, "dilation": dilation, "groups": group}
    attributes |= {"form": get.get_string("form", "erf")}
    if norm == "layer":
        attributes["epsilon"] = get.get_float("epsilon", EPSILON)
    meaning = {"attributes": canonical, "turned": {"1": TURNED}}
    return plugin(op, node, KERNELS[norm], given, ["out"], node.outputs[0].shape, meaning, **attributes)


def _why_not(norm: str, group: int, made: int, w: ir.Value) -> str:
    if norm not in KERNELS:
        return f"a norm over time (norm {norm!r}) is two kernels, of which none is offered"
    if norm == "layer" and (group != 1 or made > WIDEST):
        return f"a norm over {made} channels in {group} groups; the kernel takes one group of at most {WIDEST}"
    return "" if w.const_value is not None else "its weights are computed"
