"""onnx_attention: what the Attention operator of ONNX opset 23 can do more, spelled out, so that `sdpa` takes the rest.

is_causal becomes a FusedCausalMask that is added; past keys and values are put before the new ones, and what comes of it are the
operator's second and third outputs. Without past the operator counts queries and keys from 0 on, so is_causal is taken where there
are as many of both; with past the queries are the last. (ONNX operator documentation, Attention-23; Vaswani et al. 2017, 3.2.3.)

A softcap, grouped queries, a second score output and other roundings are left as they are, with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ..cleanup import LOW
from ..dims import same_dim
from ..graph import DOMAIN

OP = "Attention"
KEPT = ("scale", "softmax_precision")


class Plain(pattern.RewriteRuleClassBase):
    """Attention with is_causal, with past, or with both; q, k and v are [B,h,S,d]."""

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
        if not causal and not self.past:
            return result.fail("neither causal nor with past: sdpa takes it", node)
        if not self.past and any(value is not None for value in node.inputs[4:]):
            return result.fail("past keys and values are given, but no more than one output", node)
        if any(value.uses() or value.is_graph_output() for value in node.outputs[3 if self.past else 1 :]):
            return result.fail("an output that only the operator gives is used", node)
        if node.attributes.get_float("softcap", 0.0):
            return result.fail("the scores are capped (softcap)", node)
        given = [v for v in (q, k, v, past_k, past_v) if v is not None]
        if any(value.shape is None or len(value.shape) != 4 for value in given):
            return result.fail("q, k and v are not all known to be [batch, heads, length, size]", q)
        if not same_dim(q.shape[1], k.shape[1]):
            return result.fail("q has other heads than k and v (grouped queries)", k)
        if causal and not same_dim(q.shape[2], k.shape[2]):
            return result.fail("causal with other numbers of queries than of keys", k)
        if mask is not None and (mask.dtype is None or mask.shape is None):
            return result.fail("the mask's type or rank is not known", mask)
        return result

    def rewrite(self, op, q, k, v, out, mask=None, past_k=None, past_v=None, **_):
        node = out.producer()
        attributes = {name: node.attributes[name].value for name in KEPT if name in node.attributes}
        if self.past:
            k, v = (self._behind(op, past, new, into) for past, new, into in zip((past_k, past_v), (k, v), node.outputs[1:3], strict=True))
        if node.attributes.get_int("is_causal", 0):
            mask = self._ordered(op, q, k, mask)
        made = op.Attention(q, k, v, mask, **attributes)
        return (made, k, v) if self.past else made

    def _behind(self, op: Any, past: ir.Value, new: ir.Value, into: ir.Value) -> ir.Value:
        made = op.Concat(past, new, axis=2)
        made.shape, made.dtype = into.shape, new.dtype
        return made

    def _ordered(self, op: Any, q: ir.Value, k: ir.Value, mask: ir.Value | None) -> ir.Value:
        """The causal mask, with what was masked before."""
        queries = op.Shape(q, start=2, end=3)
        queries.shape, queries.dtype = ir.Shape([1]), ir.DataType.INT64
        places = None
        if self.past:
            row, column = (op.Constant(value=ir.tensor(np.array(n, np.int64))) for n in ([0, 0], [1, 1]))
            places = op.Expand(op.Constant(value=ir.tensor(np.ones((1, 1), np.int64))), op.Concat(row, queries, axis=0))
        made = op.FusedCausalMask(places, queries, low=LOW, _domain=DOMAIN)
        return made
