"""gelu: decomposed Gaussian error linear units as the standard Gelu, or bertc.FusedGelu(x; form) where there is none.

erf:   x * 0.5 * (1 + erf(x / sqrt(2)))                            (Hendrycks and Gimpel 2016)
tanh:  x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))    (ibid.; also factored as sqrt(2/pi) * x * (1 + ...x*x))
quick: x * sigmoid(1.702 * x)                                      (the same paper; no standard operator has it)

The standard operator is of opset 20 and has no quick form.
"""

from __future__ import annotations

import itertools
from typing import Any

from onnxscript.rewriter import pattern

from ...graph import DOMAIN

OP = "FusedGelu"
OPSET = 20
ROOT_HALF, ROOT_2, ROOT_2_PI, CUBIC, QUICK = 0.7071067811865476, 1.4142135623730951, 0.7978845608028654, 0.044715, 1.702
# Constants of half precision files carry 11 bits, 5e-4; no published variant differs from these by less than 1 %.
TOLERANCE = 1e-3


def constant(value: float) -> Any:
    """A number as a scalar or as a vector of one element."""
    made = [pattern.Constant(v, rel_tol=TOLERANCE, abs_tol=0.0) for v in (value, [value])]
    return pattern.OrValue(made)


def either(operator: Any, a: Any, b: Any) -> Any:
    """A commutative operator in both orders; not for the root of a pattern."""
    return pattern.OrValue([operator(a, b), operator(b, a)])


def _erf(op: Any, x: Any) -> Any:
    inner = pattern.OrValue([op.Div(x, constant(ROOT_2)), op.Mul(x, constant(ROOT_HALF)), op.Mul(constant(ROOT_HALF), x)])
    return op.Erf(inner)


def _tanh(op: Any, x: Any) -> Any:
    square = op.Mul(x, x)
    cube = pattern.OrValue([op.Pow(x, constant(3.0)), op.Mul(x, square), op.Mul(square, x)])
    return op.Tanh(either(op.Mul, either(op.Add, x, either(op.Mul, cube, constant(CUBIC))), constant(ROOT_2_PI)))


def _factored_tanh(op: Any, x: Any) -> Any:
    cubic = either(op.Mul, x, constant(CUBIC))
    inner = pattern.OrValue([either(op.Mul, cubic, x), either(op.Mul, op.Mul(x, x), constant(CUBIC))])
    return op.Tanh(either(op.Mul, either(op.Mul, x, constant(ROOT_2_PI)), either(op.Add, inner, constant(1.0))))


FORMS = {"erf": _erf, "tanh": _tanh, "factored_tanh": _factored_tanh}


class Decomposed(pattern.RewriteRuleClassBase):
    """erf or tanh; `half` says where the 0.5 stands: last, on x, or on the bracket."""

    def __init__(self, form: str, half: str, swapped: bool) -> None:
        super().__init__(f"gelu_{form}_{half}")
        self.form, self.half, self.swapped = form, half, swapped

    def pattern(self, op, x):
        bracket = either(op.Add, FORMS[self.form](op, x), constant(1.0))
        if self.half == "last":
            parts = (either(op.Mul, x, bracket), constant(0.5))
        elif self.half == "x":
            parts = (either(op.Mul, x, constant(0.5)), bracket)
        else:
            parts = (x, either(op.Mul, bracket, constant(0.5)))
        return op.Mul(*(reversed(parts) if self.swapped else parts))

    def rewrite(self, op, x, **_):
        return op.Gelu(x, approximate="none" if self.form == "erf" else "tanh")

    def check(self, context, x, **_):
        result = pattern.MatchResult()
        opset = context.model.opset_imports.get("", 0)
        return result if opset >= OPSET else result.fail(f"opset {opset} has no Gelu")


class OlderDecomposed(Decomposed):
    """The same below opset 20."""

    def check(self, context, x, **_):
        return pattern.MatchResult()

    def rewrite(self, op, x, **_):
        return op.FusedGelu(x, form="erf" if self.form == "erf" else "tanh", _domain=DOMAIN)


class Quick(pattern.RewriteRuleClassBase):
    """x * sigmoid(1.702 * x)."""

    def __init__(self, swapped: bool) -> None:
        super().__init__("gelu_quick")
        self.swapped = swapped

    def pattern(self, op, x):
        gate = op.Sigmoid(either(op.Mul, x, constant(QUICK)))
        return op.Mul(gate, x) if self.swapped else op.Mul(x, gate)

    def rewrite(self, op, x, **_):
        return op.FusedGelu(x, form="quick", _domain=DOMAIN)


RULES: list[pattern.RewriteRule] = [
    *(
        kind.rule(form, half, swapped)
        for form, half, swapped in itertools.product(FORMS, ("last", "x", "bracket"), (False, True))
        for kind in (Decomposed, OlderDecomposed)
    ),
    *(Quick.rule(swapped) for swapped in (False, True)),
]

_GRAPH = """
<ir_version: 8, opset_import: ["" : {opset}]>
example (float[B, S, 4] x) => (float[B, S, 4] y)
<float half = {{0.5}}, float one = {{1.0}}, float[1] r = {{{root}}}, float h = {{0.70710677}}, float c = {{0.7978846}},
 float a = {{0.044715}}, float three = {{3.0}}, float k = {{{quick}}}> {{
{body}
}}
"""
_ERF = "d = Div(x, r)\ne = Erf(d)\ns = Add(e, one)\n"
_TANH = "q = Pow(x, three)\nw = Mul(a, q)\nu = Add(x, w)\nv = Mul(c, u)\nt = Tanh(v)\ns = Add(one, t)\n"
_FACTORED = "f = Mul(x, c)\nq = Mul(x, a)\nw = Mul(q, x)\nu = Add(w, one)\nv = Mul(f, u)\nt = Tanh(v)\ns = Add(t, one)\n"
_ON_X = "m = Mul(x, half)\ny = Mul(m, s)"


def _text(body: str, opset: int = 20, root: float = 1.4142135, quick: float = 1.702) -> str:
    return _GRAPH.format(body=body, opset=opset, root=root, quick=quick)


EXAMPLES: list[str] = [
    _text(_ERF + "m = Mul(x, s)\ny = Mul(m, half)"),
    _text(_ERF.replace("Div(x, r)", "Mul(h, x)") + "m = Mul(s, half)\ny = Mul(x, m)", opset=17),
    _text(_TANH + _ON_X),
    _text(_FACTORED + _ON_X, opset=17),
    _text("g = Mul(x, k)\nz = Sigmoid(g)\ny = Mul(x, z)"),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_ERF + _ON_X, root=1.5), "None of the alternatives matched"),
    (_text("g = Mul(x, k)\nz = Sigmoid(g)\ny = Mul(x, z)", quick=1.0), "None of the alternatives matched"),
]
