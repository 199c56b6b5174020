"""bias_gelu: a bias and a GELU as bertc.FusedBiasGelu(x, b; form), form "erf", "tanh" or "quick".

The bias is an Add, or the one inside a FusedLinear, which is left without it. This runs before `linear`, so that the MatMul
before an Add keeps none, and behind `gelu`, which makes one operator of decomposed arithmetic.
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import pattern

from ...graph import DOMAIN
from .layernorm import is_vector

OP = "FusedBiasGelu"


class BiasGelu(pattern.RewriteRuleClassBase):
    """Gelu(x + b); `standard` says which of the two GELU operators, `behind` what adds the bias."""

    def __init__(self, standard: bool, behind: str) -> None:
        super().__init__(f"bias_gelu_{behind}")
        self.standard, self.behind = standard, behind

    def pattern(self, op, x, w, b):
        if self.behind == "linear":
            biased = op.FusedLinear(x, w, b, _domain=DOMAIN)
        else:
            biased = op.Add(b, x) if self.behind == "swapped_add" else op.Add(x, b)
        if self.standard:
            return op.Gelu(biased, _outputs=["gelu"])
        return op.FusedGelu(biased, _domain=DOMAIN, _outputs=["gelu"])

    def check(self, context, x, b, gelu, **_):
        result = pattern.MatchResult()
        if not is_vector(b):
            return result.fail("the bias is not a constant vector", b)
        width = None if gelu.shape is None else gelu.shape[-1]
        if isinstance(width, int) and b.const_value.shape[0] != width:
            return result.fail("the bias is not as wide as the input", b)
        return result

    def rewrite(self, op, x, b, gelu, w=None, **_):
        if w is not None:
            x = op.FusedLinear(x, w, _domain=DOMAIN)
            x.shape, x.dtype = gelu.shape, gelu.dtype
        return op.FusedBiasGelu(x, b, form=gelu_form(gelu), _domain=DOMAIN)


def gelu_form(gelu: Any) -> str:
    """erf, tanh or quick: the form of a Gelu or FusedGelu by its output."""
    attributes = gelu.producer().attributes
    approximate = attributes.get_string("approximate", "none")
    return attributes.get_string("form", "tanh" if approximate == "tanh" else "erf")


RULES: list[pattern.RewriteRule] = [
    BiasGelu.rule(standard, behind) for standard in (True, False) for behind in ("linear", "add", "swapped_add")
]

_GRAPH = """
<ir_version: 8, opset_import: ["" : 20, "bertc" : 1]>
example (float[B, S, 2] x, float[B, S, 4] z) => (float[B, S, 4] y)
<float[2, 4] w = {{1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0}}, float[4] b = {{0.1, 0.2, 0.3, 0.4}}, float[1] one = {{0.5}}> {{
{body}
}}
"""
EXAMPLES: list[str] = [
    _GRAPH.format(body="m = MatMul(x, w)\na = Add(m, b)\ny = Gelu(a)"),
    _GRAPH.format(body='a = Add(b, z)\ny = Gelu <approximate = "tanh"> (a)'),
    _GRAPH.format(body='a = Add(z, b)\ny = bertc.FusedGelu <form = "quick"> (a)'),
    _GRAPH.format(body="m = bertc.FusedLinear(x, w, b)\ny = Gelu(m)"),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body="m = MatMul(x, w)\na = Add(m, z)\ny = Gelu(a)"), "the bias is not a constant vector"),
    (_GRAPH.format(body="a = Add(z, one)\ny = Gelu(a)"), "the bias is not as wide as the input"),
]
