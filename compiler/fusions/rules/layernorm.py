"""layernorm: decomposed layer normalisation as the standard LayerNormalization.

y = (x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) [* gamma [+ beta]], means over the last axis (Ba et al. 2016). Exports
below opset 17 and those of TensorFlow spell it as six to nine nodes: the square as Pow or Mul, the division as Div or as Mul by a
Reciprocal, the difference once or twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import constant_number

OP = "LayerNormalization"
OPSET = 17
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Decomposed(pattern.RewriteRuleClassBase):
    """One spelling of the last nodes (`tail`: "beta", "gamma", "none"), of their order and of the division."""

    def __init__(self, tail: str, swapped: bool, divides: bool, twice: bool) -> None:
        super().__init__(f"layernorm_{tail}")
        self.tail, self.swapped, self.divides, self.twice = tail, swapped, divides, twice

    def pattern(self, op, x, gamma, beta, epsilon, two):
        mean = op.ReduceMean(x, _allow_other_inputs=True, _outputs=["mean"])
        centred = op.Sub(x, mean)
        other = op.Sub(x, mean) if self.twice else centred
        square = pattern.OrValue([op.Pow(other, two), op.Mul(other, other)])
        variance = op.ReduceMean(square, _allow_other_inputs=True, _outputs=["variance"])
        root = op.Sqrt(pattern.OrValue([op.Add(variance, epsilon), op.Add(epsilon, variance)]))
        if self.divides:
            normal = op.Div(centred, root)
        elif self.tail == "none" and self.swapped:
            normal = op.Mul(op.Reciprocal(root), centred)
        elif self.tail == "none":
            normal = op.Mul(centred, op.Reciprocal(root))
        else:
            inverse = op.Reciprocal(root)
            normal = pattern.OrValue([op.Mul(centred, inverse), op.Mul(inverse, centred)])
        if self.tail == "none":
            return normal
        if self.tail == "gamma":
            return op.Mul(gamma, normal) if self.swapped else op.Mul(normal, gamma)
        scaled = pattern.OrValue([op.Mul(normal, gamma), op.Mul(gamma, normal)])
        return op.Add(beta, scaled) if self.swapped else op.Add(scaled, beta)

    def check(self, context, x, mean, variance, epsilon, gamma=None, beta=None, two=None, **_):
        result = pattern.MatchResult()
        opset = context.model.opset_imports.get("", 0)
        if opset < OPSET:
            return result.fail(f"opset {opset} has no LayerNormalization; convert the graph to opset {OPSET} or newer")
        if x.dtype not in FLOATS or x.shape is None or not isinstance(x.shape[-1], int):
            return result.fail("the input is not known to be floats of a fixed width", x)
        if not all(_over_last_axis(value, len(x.shape)) for value in (mean, variance)):
            return result.fail("a mean is not over the last axis alone, or drops it", mean)
        if constant_number(epsilon) is None:
            return result.fail("epsilon is not a constant number", epsilon)
        if two is not None and constant_number(two) != 2:
            return result.fail("the power is not 2", two)
        for value in (gamma, beta):
            if value is not None and not is_vector(value, x.shape[-1]):
                return result.fail(f"{value.name} is not a vector as wide as the input", value)
        return result

    def rewrite(self, op, x, epsilon, gamma=None, beta=None, **_):
        if gamma is None:
            ones = np.ones(x.shape[-1], x.dtype.numpy())
            gamma = op.initializer(ir.tensor(ones, dtype=x.dtype, name=f"{x.name}.ones"))
        inputs = [x, gamma] if beta is None else [x, gamma, beta]
        return op.LayerNormalization(*inputs, axis=-1, epsilon=constant_number(epsilon))


def is_vector(value: Any, width: int | None = None) -> bool:
    """Is it a constant of rank 1 (and of this width)?"""
    constant = value.const_value
    return constant is not None and len(constant.shape) == 1 and width in (None, constant.shape[0])


def _over_last_axis(value: ir.Value, rank: int) -> bool:
    node = value.producer()
    assert node is not None
    keeps = node.attributes.get("keepdims")
    if keeps is not None and keeps.as_int() != 1:
        return False
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value is not None:
        axes = node.inputs[1].const_value.numpy().reshape(-1).tolist()
    else:
        return False
    return axes in ([-1], [rank - 1])


RULES: list[pattern.RewriteRule] = [
    Decomposed.rule(tail, swapped, divides, twice)
    for tail in ("beta", "gamma", "none")
    for twice in (False, True)
    for divides in (True, False)
    for swapped in (False, True)
    if not (tail == "none" and divides and swapped)  # a division has no other order
]

_GRAPH = """
<ir_version: 8, opset_import: ["" : {opset}]>
example (float[B, S, 4] x) => (float[B, S, 4] y)
<float[4] g = {{1.0, 0.5, 2.0, -1.0}}, float[4] b = {{0.1, 0.2, 0.3, 0.4}}, float e = {{1e-5}}, float p = {{{power}}},
 int64[1] last = {{{axis}}}> {{
{body}
}}
"""
_CORE = """
m = ReduceMean <axes = [-1]> (x)
d = Sub(x, m)
q = Pow(d, p)
v = ReduceMean <axes = [-1]> (q)
w = Add(v, e)
r = Sqrt(w)
n = Div(d, r)
"""
_TAIL = "s = Mul(n, g)\ny = Add(s, b)"
_NEWER = _CORE.replace("<axes = [-1]> (x)", "(x, last)").replace("<axes = [-1]> (q)", "(q, last)")


def _text(body: str, opset: int = 17, power: float = 2.0, axis: int = -1) -> str:
    return _GRAPH.format(body=body, opset=opset, power=power, axis=axis)


EXAMPLES: list[str] = [
    _text(_CORE + _TAIL),
    _text(_NEWER + "s = Mul(g, n)\ny = Add(b, s)", opset=18, axis=2),
    _text(
        _CORE.replace("Pow(d, p)", "Mul(d, d)").replace("Div(d, r)", "Mul(i, d)").replace("n =", "i = Reciprocal(r)\nn =") + _TAIL
    ),
    _text(_CORE.replace("q = Pow(d, p)", "c = Sub(x, m)\nq = Pow(c, p)").replace("Add(v, e)", "Add(e, v)") + "y = Mul(g, n)"),
    _text(_CORE.replace("n =", "y =")),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_NEWER + _TAIL, opset=18, axis=1), "a mean is not over the last axis alone"),
    (_text(_CORE + _TAIL, power=3.0), "the power is not 2"),
    (_text(_CORE + _TAIL, opset=15), "opset 15 has no LayerNormalization"),
]
