"""linear: MatMul with a constant [K,N] weight, its bias Add, or Gemm, as bertc.FusedLinear(x, W, b)."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ..rewrite import DOMAIN

OP = "FusedLinear"


class WithBias(pattern.RewriteRuleClassBase):
    """x @ W + b."""

    def pattern(self, op, x, w, b):  # type: ignore[no-untyped-def]
        return op.Add(op.MatMul(x, w), b)

    def check(self, context, x, w, b, **_):  # type: ignore[no-untyped-def]
        result = pattern.MatchResult()
        if w.const_value is None or len(w.const_value.shape) != 2:
            return result.fail("the weight is not a constant matrix", w)
        if b.const_value is None or len(b.const_value.shape) != 1:
            return result.fail("the bias is not a constant vector", b)
        return result

    def rewrite(self, op, x, w, b, **_):  # type: ignore[no-untyped-def]
        return op.FusedLinear(x, w, b, _domain=DOMAIN)


class Plain(pattern.RewriteRuleClassBase):
    """x @ W."""

    def pattern(self, op, x, w):  # type: ignore[no-untyped-def]
        return op.MatMul(x, w)

    def check(self, context, x, w, **_):  # type: ignore[no-untyped-def]
        result = pattern.MatchResult()
        if w.const_value is None or len(w.const_value.shape) != 2:
            return result.fail("the weight is not a constant matrix", w)
        return result

    def rewrite(self, op, x, w, **_):  # type: ignore[no-untyped-def]
        return op.FusedLinear(x, w, _domain=DOMAIN)


RULES: list[pattern.RewriteRule] = [*WithBias.rule().commute(), Plain.rule()]
_ = ir
