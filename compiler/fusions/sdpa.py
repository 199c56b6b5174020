"""sdpa: scaled dot-product attention as exporters spell it, as bertc.FusedSdpa(q, k_t, v, mask; scale).

q is [B,h,S,d], k_t is [B,h,d,T], v is [B,h,T,d], the mask is added to the scores and broadcasts to [B,h,S,T]. The scale may stand
on the scores, on q, or as its square root on both q and k; the softmax may be followed by torch's IsNaN -> 0 for rows that attend
to nothing, which is dropped: behind a finite mask it never fires, behind -inf the row is one nobody reads.
Vaswani et al. 2017, section 3.2.1.
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import pattern

from ..rewrite import DOMAIN

OP = "FusedSdpa"


class Sdpa(pattern.RewriteRuleClassBase):
    """One spelling: where the scale stands, whether there is a mask, whether the IsNaN tail is there."""

    def __init__(self, scale: str, masked: bool, tail: bool) -> None:
        super().__init__(f"sdpa_{scale}{'_masked' if masked else ''}{'_tail' if tail else ''}")
        self.scale, self.masked, self.tail = scale, masked, tail

    def pattern(self, op, q, k_t, v, s, s2, mask):  # type: ignore[no-untyped-def]
        if self.scale == "q":
            scores = op.MatMul(op.Mul(q, s), k_t)
        elif self.scale == "both":
            scores = op.MatMul(op.Mul(q, s), op.Mul(k_t, s2))
        elif self.scale == "none":
            scores = op.MatMul(q, k_t)
        else:
            scores = (op.Mul if self.scale == "mul" else op.Div)(op.MatMul(q, k_t), s)
        if self.masked:
            scores = op.Add(scores, mask)
        p = op.Softmax(scores, axis=-1)
        if self.tail:
            p = op.Where(op.IsNaN(p), pattern.ANY_VALUE, p)
        return op.MatMul(p, v)

    def check(self, context, q, k_t, v, s=None, s2=None, mask=None, **_):  # type: ignore[no-untyped-def]
        result = pattern.MatchResult()
        for value, what in ((q, "q"), (k_t, "k"), (v, "v")):
            if value.shape is None or len(value.shape) != 4:
                return result.fail(f"{what} is not known to be [batch, heads, length, size]", value)
        if self.scale != "none" and _number(s) is None:
            return result.fail("the scale is not a constant number", s)
        if self.scale == "both" and _number(s2) is None:
            return result.fail("the scale on k is not a constant number", s2)
        return result

    def rewrite(self, op, q, k_t, v, s=None, s2=None, mask=None, **_):  # type: ignore[no-untyped-def]
        number = _number(s)
        scale = {"none": 1.0, "div": 1 / number if number else 1.0, "both": (number or 1.0) * (_number(s2) or 1.0)}.get(
            self.scale, number
        )
        return op.FusedSdpa(q, k_t, v, mask, scale=scale, _domain=DOMAIN)


def _number(value: Any) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


RULES: list[pattern.RewriteRule] = [
    rule
    for tail in (True, False)
    for masked in (True, False)
    for scale in ("both", "q", "mul", "div", "none")
    for rule in Sdpa.rule(scale, masked, tail).commute()
]
