"""onnx_attention: what the Attention operator of ONNX opset 23 can do more, spelled out, so that `sdpa` takes the rest.

is_causal becomes a FusedCausalMask that is added: the operator counts queries and keys from 0 on, so there must be as many of
both. Past keys and values are put before the new ones, and what comes of it are the operator's second and third outputs. (ONNX
operator documentation, Attention-23.) A softcap, grouped queries, is_causal beside past or a mask, and a fourth output are
left as they are, with the reason.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, MASK_LOW, same_dim

OP = "Attention"


class Plain(pattern.RewriteRuleClassBase):
    """Attention with is_causal or with past; q, k and v are [B,h,S,d]."""

    def __init__(self, past: bool) -> None:
        super().__init__("onnx_attention" + ("_past" if past else ""))
        self.past = past

    def pattern(self, op, q, k, v):
        mask = pattern.Var("mask", can_match_none=True)
        if not self.past:
            return op.Attention(q, k, v, mask, _allow_other_inputs=True, _outputs=["out"])
        past = (pattern.Var("past_k"), pattern.Var("past_v"))
        return op.Attention(q, k, v, mask, *past, _outputs=["out", "present_k", "present_v"])

    def check(self, context, q, k, v, out, mask=None, past_k=None, past_v=None, **_):
        result = pattern.MatchResult()
        node = out.producer()
        causal = node.attributes.get_int("is_causal", 0)
        if causal and self.past:
            return result.fail("both causal and with past", node)
        if not causal and not self.past:
            return result.fail("neither causal nor with past: left to rule sdpa", node)
        if not self.past and any(value is not None for value in node.inputs[4:]):
            return result.fail("past keys and values are given, but no more than one output", node)
        if any(value.uses() or value.is_graph_output() for value in node.outputs[3 if self.past else 1 :]):
            return result.fail("an output of Attention that has no fused form is used", node)
        if node.attributes.get_float("softcap", 0.0):
            return result.fail("the scores are capped (softcap)", node)
        given = [v for v in (q, k, v, past_k, past_v) if v is not None]
        if any(value.shape is None or len(value.shape) != 4 for value in given):
            return result.fail("q, k and v are not all known to be [batch, heads, length, size]", q)
        if not same_dim(q.shape[1], k.shape[1]):
            return result.fail("q has other heads than k and v (grouped queries)", k)
        if causal and not same_dim(q.shape[2], k.shape[2]):
            return result.fail("causal with other numbers of queries than of keys", k)
        if causal and mask is not None:
            return result.fail("both causal and masked: a query that sees nothing but what is masked would change", mask)
        return result

    def rewrite(self, op, q, k, v, out, mask=None, past_k=None, past_v=None, **_):
        node = out.producer()
        scale = {"scale": node.attributes["scale"].as_float()} if "scale" in node.attributes else {}
        if not self.past:
            return op.Attention(q, k, v, _ordered(op, q), **scale)
        keys, values = (_behind(op, *pair) for pair in zip((past_k, past_v), (k, v), node.outputs[1:3], strict=True))
        return op.Attention(q, keys, values, mask, **scale), keys, values


def _behind(op: Any, past: ir.Value, new: ir.Value, into: ir.Value) -> ir.Value:
    made = op.Concat(past, new, axis=2)
    made.shape, made.dtype = into.shape, new.dtype
    return made


def _ordered(op: Any, q: ir.Value) -> ir.Value:
    """The causal mask of so many queries."""
    queries = op.Shape(q, start=2, end=3)
    queries.shape, queries.dtype = ir.Shape([1]), ir.DataType.INT64
    made = op.FusedCausalMask(None, queries, low=MASK_LOW, _domain=DOMAIN)
    made.shape, made.dtype = ir.Shape([1, 1, q.shape[2], q.shape[2]]), ir.DataType.FLOAT
    return made


RULES: list[pattern.RewriteRule] = [Plain.rule(False), Plain.rule(True)]

_GRAPH = """<ir_version: 10, opset_import: ["" : 23, "bertc" : 1]>
g (float[B, 2, S, 4] q, float[B, 2, S, 4] k, float[B, 2, S, 4] v, float[B, 2, T, 4] long, float[B, 1, S, S] mask,
   float[B, 2, P, 4] past_k, float[B, 2, P, 4] past_v) => (float[B, 2, S, 4] y{more})
{{
  {body}
}}"""
_MORE = ", float[B, 2, N, 4] keys, float[B, 2, N, 4] values"


def _text(body: str, more: str = "") -> str:
    return _GRAPH.format(body=body, more=more)


EXAMPLES: list[str] = [
    _text("y = Attention <is_causal = 1> (q, k, v)"),
    _text("y = Attention <is_causal = 1, scale = 0.3> (q, k, v)"),
    _text("y, keys, values = Attention (q, k, v, , past_k, past_v)", _MORE),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text("y = Attention <is_causal = 1> (q, k, v, mask)"), "both causal and masked"),
    (_text("y = Attention <is_causal = 1> (q, long, long)"), "other numbers of queries than of keys"),
    (_text("y = Attention <is_causal = 1, softcap = 2.0> (q, k, v)"), "the scores are capped (softcap)"),
    (_text("y, keys, values = Attention <is_causal = 1> (q, k, v, , past_k, past_v)", _MORE), "both causal and with past"),
]
