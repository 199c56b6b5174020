"""skip_layernorm: a residual sum and its normalisation as bertc.FusedSkipLayerNorm or bertc.FusedSkipRmsNorm.

sum = x [+ b] + skip, y = LayerNormalization(sum) (Ba et al. 2016) or sum / sqrt(mean(sum**2) + epsilon) * gamma (Zhang and
Sennrich 2019). Post-norm encoders read y alone; pre-norm ones add to the sum again, which is then the second output. A
bias that stands inside a FusedLinear or a FusedAttention stays there.
"""

from __future__ import annotations

import itertools
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number
from .layernorm import _over_last_axis, is_vector

OP = "FusedSkipLayerNorm"
RMS_OP = "FusedSkipRmsNorm"


class Skip(pattern.RewriteRuleClassBase):
    """Which normalisation, the terms of the sum in order (x, s for skip, b for the bias), and whether others read the sum."""

    def __init__(self, norm: str, order: str, keeps_sum: bool) -> None:
        super().__init__(f"skip_{norm}_{order}{'_sum' if keeps_sum else ''}")
        self.norm, self.order, self.keeps_sum = norm, order, keeps_sum

    def pattern(self, op, x, skip, b, gamma, epsilon, two):
        # Every order is a rule of its own: an alternative inside a pattern would bind x to the bias and never be reconsidered.
        terms = {"x": x, "s": skip}
        if "b" in self.order:
            terms = {"xb": op.Add(x, b), "s": skip} if "xb" in self.order else {"bx": op.Add(b, x), "s": skip}
        total = op.Add(*(terms[term] for term in self.order.split("+")), _outputs=["total"])
        y = self._normalised(op, total, gamma, epsilon, two)
        return (y, total) if self.keeps_sum else y

    def _normalised(self, op: Any, total: Any, gamma: Any, epsilon: Any, two: Any) -> Any:
        if self.norm == "layernorm":
            return op.LayerNormalization(total, gamma, pattern.Var("beta", can_match_none=True), _outputs=["y"])
        if self.norm == "rmsnorm":
            return op.RMSNormalization(total, gamma, _outputs=["y"])
        square = pattern.OrValue([op.Pow(total, two), op.Mul(total, total)])
        mean = op.ReduceMean(square, _allow_other_inputs=True, _outputs=["mean"])
        root = op.Sqrt(pattern.OrValue([op.Add(mean, epsilon), op.Add(epsilon, mean)]))
        inverse = pattern.OrValue(
            [op.Reciprocal(root), op.Div(pattern.OrValue([pattern.Constant(1), pattern.Constant([1])]), root)]
        )
        normal = pattern.OrValue([op.Mul(total, inverse), op.Mul(inverse, total), op.Div(total, root)])
        return op.Mul(gamma, normal, _outputs=["y"]) if self.norm.endswith("swapped") else op.Mul(normal, gamma, _outputs=["y"])

    def check(self, context, total, x, skip, gamma, y, b=None, **found):
        result = pattern.MatchResult()
        if total.shape is None or len(total.shape) != 3 or not isinstance(total.shape[-1], int):
            return result.fail("the sum is not known to be [batch, length, width]", total)
        for value in (gamma, *(v for v in (b, found.get("beta")) if v is not None)):
            if not is_vector(value, total.shape[-1]):
                return result.fail(f"{value.name} is not a constant vector as wide as the sum", value)
        if not _same_shape(x, skip):
            return result.fail("one term of the sum is broadcast: it is no residual", skip)
        axis = y.producer().attributes.get("axis")
        if axis is not None and axis.as_int() not in (-1, 2):
            return result.fail("the normalisation is not over the last axis", y)
        if self.norm.startswith("decomposed"):
            return _check_rms(result, total, found)
        return result

    def rewrite(self, op, x, skip, gamma, y, b=None, beta=None, epsilon=None, **_):
        if epsilon is not None:
            value = constant_number(epsilon)
        else:
            attribute = y.producer().attributes.get("epsilon")
            value = 1e-5 if attribute is None else attribute.as_float()
        outputs = 2 if self.keeps_sum else 1
        if self.norm != "layernorm":
            return op.FusedSkipRmsNorm(x, skip, b, gamma, epsilon=value, _outputs=outputs, _domain=DOMAIN)
        return op.FusedSkipLayerNorm(x, skip, b, gamma, beta, epsilon=value, _outputs=outputs, _domain=DOMAIN)


def _check_rms(result: Any, total: ir.Value, found: dict[str, Any]) -> Any:
    if constant_number(found.get("epsilon")) is None:
        return result.fail("epsilon is not a constant number", found.get("epsilon"))
    if found.get("two") is not None and constant_number(found["two"]) != 2:
        return result.fail("the power is not 2", found["two"])
    if not _over_last_axis(found["mean"], len(total.shape or ())):
        return result.fail("the mean is not over the last axis alone, or drops it", found["mean"])
    return result


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Neither is broadcast. Dimensions that the exporter lost are taken to agree (the proof refuses those that do not), except
    in lookups: positions [1, length] have lost theirs too, and are no residual."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    trusted = not any(node is not None and node.op_type == "Gather" for node in (a.producer(), b.producer()))
    pairs = [(m, n) for m, n in zip(a.shape, b.shape, strict=True) if m != n]
    return all(trusted and (_is_lost(m) or _is_lost(n)) and not isinstance(m, int) and not isinstance(n, int) for m, n in pairs)


def _is_lost(dim: Any) -> bool:
    """No number and no name, or one that ONNX's shape inference made up."""
    return not isinstance(dim, int) and (dim.value is None or str(dim.value).startswith("unk__"))


RULES: list[pattern.RewriteRule] = [
    Skip.rule(norm, order, keeps_sum)
    for norm, order, keeps_sum in itertools.product(
        ("layernorm", "rmsnorm", "decomposed_rmsnorm", "decomposed_rmsnorm_swapped"),
        ("xb+s", "bx+s", "s+xb", "s+bx", "x+s"),
        (False, True),
    )
]

_GRAPH = """
<ir_version: 8, opset_import: ["" : {opset}]>
example (float[B, S, 4] x, float[B, S, 4] skip, float[1, S, 4] row) => (float[B, S, 4] y{more})
<float[4] g = {{1.0, 0.5, 2.0, -1.0}}, float[4] beta = {{0.1, 0.2, 0.3, 0.4}}, float[4] b = {{-0.1, 0.5, 0.3, 1.4}}, 
 float e = {{1e-6}}, float two = {{2.0}}, int64[1] last = {{-1}}> {{
{body}
}}
"""
_NORM = "y = LayerNormalization <axis = -1, epsilon = 1e-6> (s, g, beta)"
_RMS = "q = Pow(s, two)\nm = ReduceMean(q, last)\nv = Add(m, e)\nr = Sqrt(v)\ni = Reciprocal(r)\nn = Mul(s, i)\ny = Mul(g, n)"


def _text(body: str, more: str = "", opset: int = 18) -> str:
    return _GRAPH.format(body=body, more=more, opset=opset)


EXAMPLES: list[str] = [
    _text("s = Add(x, skip)\n" + _NORM),
    _text("a = Add(x, b)\ns = Add(skip, a)\n" + _NORM),
    _text("a = Add(b, x)\ns = Add(a, skip)\ny = LayerNormalization <epsilon = 1e-6> (s, g)\nt = Neg(s)", ", float[B, S, 4] t"),
    _text("s = Add(x, skip)\n" + _RMS + "\nt = Neg(s)", ", float[B, S, 4] t"),
    _text("s = Add(x, skip)\ny = RMSNormalization <epsilon = 1e-6> (s, g)", opset=23),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text("s = Add(x, row)\n" + _NORM), "one term of the sum is broadcast"),
    (
        _text("s = Add(x, skip)\n" + _NORM.replace("(s, g, beta)", "(s, e, beta)")),
        "e is not a constant vector as wide as the sum",
    ),
    (_text("s = Add(x, skip)\n" + _NORM.replace("axis = -1", "axis = 1")), "the normalisation is not over the last axis"),
]
