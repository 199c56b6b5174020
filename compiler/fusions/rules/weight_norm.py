"""weight_norm: the weight of a convolution computed from its direction and its length, as a constant.

    w = g * v / ||v||        Salimans and Kingma 2016, "Weight Normalization", equation 2

wav2vec 2.0 and HuBERT are saved so (their positional convolution); torch's exporters compute the weight again in every run. The
norm is over all axes but those of g. It is computed when the weight is read, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

OP = "Conv"


class WeightNorm(pattern.RewriteRuleClassBase):
    """Conv(x, g * v / ||v||, b): dynamo divides g by the norm, torch.jit v."""

    def pattern(self, op, x, v, g):
        norm = op.ReduceL2(v, _allow_other_inputs=True, _outputs=["norm"])
        w = pattern.OrValue([op.Mul(v, op.Div(g, norm)), op.Mul(op.Div(v, norm), g)])
        return op.Conv(x, w, pattern.Var("b", can_match_none=True), _outputs=["conv"])

    def check(self, context, v, g, norm, **_):
        result = pattern.MatchResult()
        if v.const_value is None or g.const_value is None:
            return result.fail("direction or length of the weight is not constant", g if v.const_value is not None else v)
        if _axes(norm) is None or not norm.producer().attributes.get_int("keepdims", 1):
            return result.fail("the axes of the norm are not known, or it drops them", norm)
        return result

    def rewrite(self, op, x, v, g, norm, conv, b=None, **_):
        attributes = {name: attribute.value for name, attribute in conv.producer().attributes.items()}
        return op.Conv(x, op.initializer(_normalised(v, g, _axes(norm))), b, **attributes)


def _axes(norm: ir.Value) -> tuple[int, ...] | None:
    """Over which axes: an input from opset 18 on, an attribute before; None where they are not constant."""
    node = norm.producer()
    assert node is not None
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None or given.const_value is None or not given.const_value.size:
        return None
    return tuple(int(axis) for axis in given.const_value.numpy())


def _normalised(v: ir.Value, g: ir.Value, axes: Any) -> ir.TensorProtocol:
    """g * v / ||v|| when it is read."""
    direction, length = v.const_value, g.const_value
    assert direction is not None and length is not None
    name = f"{v.name}.normalised.{g.name}.{'_'.join(map(str, axes))}"

    def load() -> ir.TensorProtocol:
        array = direction.numpy().astype(np.float64)
        scale = length.numpy().astype(np.float64) / np.sqrt((array**2).sum(axes, keepdims=True))
        return ir.tensor((array * scale).astype(direction.dtype.numpy()), name=name)

    return ir.LazyTensor(load, dtype=direction.dtype, shape=ir.Shape(direction.shape.numpy()), name=name, cache=False)


RULES: list[pattern.RewriteRule] = [WeightNorm.rule()]

_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
example (float[B, 2, T] x, float[1, 1, 3] f) => (float[B, 2, U] y)
<float[2, 2, 3] v = {{0.5, -1, 0.2, 1, 0.3, -0.7, 0.1, 0.2, -0.3, -0.9, 0.5, 0.3}}, float[1, 1, 3] g = {{2, 0.5, -1.5}},
 float[2, 1, 1] h = {{2, -0.5}}, float[2] b = {{0.1, -0.2}}, int64[2] axes = {{0, 1}}, int64[2] others = {{1, 2}}>
{{
{body}
}}
"""
_NORM = "n = ReduceL2(v, axes)\n"
_CONV = "y = Conv <pads = [1, 1], strides = [2]> (x, w, b)"
EXAMPLES: list[str] = [
    _GRAPH.format(body=_NORM + "s = Div(g, n)\nw = Mul(v, s)\n" + _CONV),
    _GRAPH.format(body="n = ReduceL2 <keepdims = 1> (v, others)\ns = Div(v, n)\nw = Mul(s, h)\ny = Conv(x, w)"),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body=_NORM + "s = Div(f, n)\nw = Mul(v, s)\n" + _CONV), "is not constant"),
    (_GRAPH.format(body="n = ReduceL2 <keepdims = 0> (v, axes)\ns = Div(g, n)\nw = Mul(v, s)\n" + _CONV), "or it drops them"),
]
