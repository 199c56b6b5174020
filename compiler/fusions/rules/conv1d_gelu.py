"""conv1d_gelu: a 1-D convolution, its norm if it has one, and a GELU, as bertc.FusedConv1dGelu.

The layers of the feature encoders of wav2vec 2.0, HuBERT and WavLM (Baevski et al. 2020, appendix A), and their positional
convolution. The norm is one of

    group: each channel over time. Exporters below opset 21 spell it InstanceNormalization with ones and zeros, then gamma and
           beta as [C,1]; later ones GroupNormalization with as many groups as channels.
    layer: each place in time over channels: a LayerNormalization between two Transposes.

An even kernel padded by half its size makes one place too many, and the model cuts it off (SamePad). With a stride of s, n places
less are s * n less padding at the end: so the Slice goes into the pads.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number
from .bias_gelu import gelu_form
from .layernorm import is_vector

OP = "FusedConv1dGelu"
# Which norm, and how it is spelled. "affine" is an instance norm whose gamma and beta stand behind it.
SPELLINGS = ("none", "instance", "affine", "group", "layer")
NORMS = {"none": "none", "instance": "group", "affine": "group", "group": "group", "layer": "layer"}


class ConvGelu(pattern.RewriteRuleClassBase):
    """One spelling of the norm; `standard` says which of the two GELU operators."""

    def __init__(self, spelling: str, standard: bool) -> None:
        super().__init__(f"conv1d_gelu_{spelling}")
        self.spelling, self.standard = spelling, standard

    def pattern(self, op, x, w):
        made = op.Conv(x, w, pattern.Var("b", can_match_none=True), _outputs=["conv"])
        cropped = op.Slice(made, _allow_other_inputs=True, _outputs=["cropped"])
        made = self._normalised(op, pattern.OrValue([cropped, made], tag_var="crop", tag_values=[True, False]))
        if self.standard:
            return op.Gelu(made, _outputs=["gelu"])
        return op.FusedGelu(made, _domain=DOMAIN, _outputs=["gelu"])

    def _normalised(self, op: Any, x: Any) -> Any:
        gamma, beta = pattern.Var("gamma"), pattern.Var("beta")
        if self.spelling == "group":
            return op.GroupNormalization(x, gamma, beta, _outputs=["norm"])
        if self.spelling == "instance":
            return op.InstanceNormalization(x, gamma, beta, _outputs=["norm"])
        if self.spelling == "affine":
            normal = op.InstanceNormalization(x, pattern.Var("one"), pattern.Var("zero"), _outputs=["norm"])
            return op.Add(op.Mul(normal, gamma), beta)
        if self.spelling == "layer":
            beta = pattern.Var("beta", can_match_none=True)
            normal = op.LayerNormalization(op.Transpose(x, perm=[0, 2, 1]), gamma, beta, _outputs=["norm"])
            return op.Transpose(normal, perm=[0, 2, 1])
        return x

    def check(self, context, x, w, conv, crop, b=None, cropped=None, norm=None, **found):
        result = pattern.MatchResult()
        if x.shape is None or len(x.shape) != 3 or w.const_value is None or len(w.const_value.shape) != 3:
            return result.fail("not a convolution over one axis with a constant weight", w)
        if conv.producer().attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return result.fail("auto_pad: the padding depends on the length", conv)
        channels = int(w.const_value.shape[0])
        if b is not None and not is_vector(b, channels):
            return result.fail("the bias is not a constant vector, one number per channel", b)
        if crop and (reason := _why_no_crop(conv.producer(), cropped.producer())):
            return result.fail(reason, cropped)
        return result if norm is None else self._check_norm(result, channels, norm, found)

    def _check_norm(self, result: Any, channels: int, norm: ir.Value, found: dict[str, Any]) -> Any:
        node = norm.producer()
        assert node is not None
        if self.spelling == "group" and node.attributes.get_int("num_groups", 0) != channels:
            return result.fail("several channels are normalised together", norm)
        if self.spelling == "layer" and node.attributes.get_int("axis", -1) not in (-1, 2):
            return result.fail("the normalisation is not over the channels alone", norm)
        for name in ("one", "zero", "gamma", "beta"):
            value = found.get(name)
            column = self.spelling == "affine" and name in ("gamma", "beta")
            if value is not None and not (_is_column(value, channels) if column else is_vector(value, channels)):
                return result.fail(f"{value.name} is not one constant number per channel", value)
        if self.spelling == "affine" and (_differs(found["one"], 1) or _differs(found["zero"], 0)):
            return result.fail("the instance norm has its own scale besides the one after it", norm)
        return result

    def rewrite(self, op, x, w, conv, gelu, crop, b=None, cropped=None, norm=None, gamma=None, beta=None, **_):
        node = conv.producer()
        strides, pads, dilations = _geometry(node)
        if crop:
            pads[1] -= strides[0] * _dropped(cropped.producer())
        attributes = {"group": node.attributes.get_int("group", 1), "norm": NORMS[self.spelling], "form": gelu_form(gelu)}
        if norm is not None:
            attributes["epsilon"] = norm.producer().attributes.get_float("epsilon", 1e-5)
        if self.spelling == "affine":
            gamma, beta = (op.initializer(_flat(value)) for value in (gamma, beta))
        geometry = {"strides": strides, "pads": pads, "dilations": dilations}
        return op.FusedConv1dGelu(x, w, b, gamma, beta, **geometry, **attributes, _domain=DOMAIN)


def _geometry(conv: ir.Node) -> tuple[list[int], list[int], list[int]]:
    get = conv.attributes.get_ints
    return list(get("strides", [1])), list(get("pads", [0, 0])), list(get("dilations", [1]))


def _dropped(crop: ir.Node) -> int | None:
    """How many last places a Slice drops, None where it does anything else or one cannot tell."""
    start, end, axis, step = (constant_number(value) for value in (*crop.inputs[1:], None, None)[:4])
    if start != 0 or end is None or axis not in (-1, 2) or step not in (None, 1) or not -(2**31) < end < 0:
        return None
    return int(-end)


def _why_no_crop(conv: ir.Node, crop: ir.Node) -> str:
    """Why what a Slice drops cannot be left out of the padding, "" if it can."""
    dropped = _dropped(crop)
    if dropped is None:
        return "the slice does not drop a fixed number of last time steps"
    strides, pads, _ = _geometry(conv)
    return "" if strides[0] * dropped <= pads[1] else "more time steps are dropped than the padding added"


def _is_column(value: ir.Value, channels: int) -> bool:
    """[C,1] or [1,C,1]: one number a channel of [B,C,T]."""
    if value.const_value is None:
        return False
    shape = [int(n) for n in value.const_value.shape]
    return shape in ([channels, 1], [1, channels, 1])


def _differs(value: ir.Value, wanted: float) -> bool:
    assert value.const_value is not None
    return bool((value.const_value.numpy() != wanted).any())


def _flat(value: ir.Value) -> ir.TensorProtocol:
    """A column as a vector, when it is read."""
    tensor: Any = value.const_value
    name = f"{value.name}.flat"

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().reshape(-1)), name=name)

    return ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape([tensor.size]), name=name)


RULES: list[pattern.RewriteRule] = [
    ConvGelu.rule(spelling, standard) for spelling, standard in itertools.product(SPELLINGS, (True, False))
]

_GRAPH = """
<ir_version: 10, opset_import: ["" : {opset}, "bertc" : 1]>
example (float[B, 2, T] x, float[4, 2, 4] v) => (float[B, 4, U] y)
<float[4, 2, 4] w = {{0.5, -1, 0.2, 0.1, 1, 0.3, -0.7, 0.4, -0.2, 0.6, 0.9, -0.8, 0.1, 0.2, -0.3, 1.1,
                      0.7, 0.1, -0.4, 0.8, -0.9, 0.5, 0.3, -0.6, 1.2, -0.1, 0.4, 0.2, -0.5, 0.8, 0.6, -0.3}},
 float[4, 1, 4] wg = {{0.5, -1, 0.2, 0.1, -0.2, 0.6, 0.9, -0.8, 0.7, 0.1, -0.4, 0.8, 1.2, -0.1, 0.4, 0.2}},
 float[4] b = {{0.1, -0.2, 0.3, 0.4}}, float[4] g = {{1, 0.5, 2, -1}}, float[4] beta = {{0.1, 0.2, 0.3, -0.4}},
 float[4, 1] gc = {{1, 0.5, 2, -1}}, float[4, 1] bc = {{0.1, 0.2, 0.3, -0.4}},
 float[4] ones = {{1, 1, 1, 1}}, float[4] zeros = {{0, 0, 0, 0}},
 int64[1] first = {{0}}, int64[1] second = {{1}}, int64[1] end = {{-1}}, int64[1] far = {{-3}}, int64[1] axis = {{2}}>
{{
{body}
}}
"""
_CONV = "c = Conv <strides = [2]> (x, w, b)\n"
_AFFINE = "n = InstanceNormalization <epsilon = 1e-5> (c, {}, zeros)\nm = Mul(n, gc)\na = Add(m, bc)\ny = Gelu(a)"
_LAYER = (
    "t = Transpose <perm = [0, 2, 1]> (c)\nn = LayerNormalization <axis = {}, epsilon = 1e-6> (t, g, beta)\n"
    "u = Transpose <perm = [0, 2, 1]> (n)\ny = Gelu(u)"
)
_PADDED = "c = Conv <pads = [2, 2], group = 2> (x, wg, b)\nd = Slice(c, {}, {}, axis, second)\ny = Gelu(d)"


def _text(body: str, opset: int = 20) -> str:
    return _GRAPH.format(body=body, opset=opset)


EXAMPLES: list[str] = [
    _text(_CONV + "y = Gelu(c)"),
    _text('c = Conv <dilations = [2], pads = [3, 1]> (x, w)\ny = Gelu <approximate = "tanh"> (c)'),
    _text(_CONV + _AFFINE.format("ones")),
    _text(_CONV + "n = InstanceNormalization <epsilon = 1e-4> (c, g, beta)\ny = Gelu(n)"),
    _text(_CONV + "n = GroupNormalization <num_groups = 4, epsilon = 1e-3> (c, g, beta)\ny = Gelu(n)", opset=21),
    _text(_CONV + _LAYER.format(-1)),
    _text(_PADDED.format("first", "end")),
    _text(_CONV + 'y = bertc.FusedGelu <form = "quick"> (c)'),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text("c = Conv(x, v, b)\ny = Gelu(c)"), "not a convolution over one axis with a constant weight"),
    (_text('c = Conv <auto_pad = "SAME_UPPER"> (x, w, b)\ny = Gelu(c)'), "the padding depends on the length"),
    (_text(_CONV + _AFFINE.format("g")), "its own scale"),
    (
        _text(_CONV + "n = GroupNormalization <num_groups = 2> (c, g, beta)\ny = Gelu(n)", opset=21),
        "several channels are normalised together",
    ),
    (_text(_PADDED.format("second", "end")), "does not drop a fixed number of last time steps"),
    (_text(_PADDED.format("first", "far")), "more time steps are dropped than the padding added"),
]
