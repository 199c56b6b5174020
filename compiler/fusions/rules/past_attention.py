"""past_attention: attention of a decoder's step, with its cache, as FusedPastAttention.

    FusedPastAttention(x [B,S,H], mask, past_k [B,h,P,d], past_v, Wqkv [H,3*h*d], bqkv, Wo [h*d,N], bo; num_heads, scale)
        -> y [B,S,N], present_k [B,h,P+S,d], present_v

Runs behind `linear` and `sdpa`; the projections, heads and checks are those of `attention`. What is new: the keys and values are
put behind those of the cache, and what comes of it is an output as well, read by others (the next step's cache). The weight is
one already (GPT-2) or three (BERT as a decoder). Shazeer 2019, "Fast Transformer Decoding", section 2.4.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, same_dim
from .attention import ANY, NAMES, check_packed, check_shapes, merged, packed_bias, packed_weight, projected, scale_of

OP = "FusedPastAttention"


def with_past(op: Any, projection: Any, name: str) -> Any:
    """The cache [B,h,P,d] with the heads of a projection behind it."""
    new = op.Transpose(op.Reshape(projection, ANY, _outputs=[f"split_{name}"]), perm=[0, 2, 1, 3])
    return op.Concat(pattern.Var(f"past_{name}"), new, _outputs=[f"present_{name}"])


class PastAttention(pattern.RewriteRuleClassBase):
    """Three projections of one input, or one that is split into three."""

    def __init__(self, one_weight: bool) -> None:
        super().__init__("past_attention" + ("_packed" if one_weight else ""))
        self.one_weight = one_weight

    def pattern(self, op, x):
        if self.one_weight:
            linear = op.FusedLinear(x, pattern.Var("w"), pattern.Var("b", can_match_none=True), _domain=DOMAIN)
            q, k, v = op.Split(linear, _allow_other_inputs=True, _outputs=[f"part_{name}" for name in NAMES])
        else:
            q, k, v = (projected(op, x, name) for name in NAMES)
        q = op.Transpose(op.Reshape(q, ANY, _outputs=["split_q"]), perm=[0, 2, 1, 3])
        keys, values = with_past(op, k, "k"), with_past(op, v, "v")
        return merged(op, q, op.Transpose(keys, perm=[0, 1, 3, 2]), values), keys, values

    def check(self, context, **m):
        result = pattern.MatchResult()
        for name in ("k", "v"):
            past, present = m[f"past_{name}"], m[f"present_{name}"]
            if past.shape is None or present.shape is None or len(past.shape) != 4 or len(present.shape) != 4:
                return result.fail("the cache is not known to be [batch, heads, length, size]", past)
            if present.producer().attributes["axis"].as_int() not in (2, -2):
                return result.fail("new keys or values are not appended to the cache", present)
            if not same_dim(past.shape[1], present.shape[1]) or not same_dim(past.shape[3], present.shape[3]):
                return result.fail("the cache has other heads than the new keys or values", past)
        if self.one_weight:
            return check_packed(m)
        widths = {tuple(m[f"w{name}"].const_value.shape.numpy()) for name in NAMES}
        return check_shapes(m, widths.pop()[1]) if len(widths) == 1 else result.fail("q, k and v are of different sizes", m["wk"])

    def rewrite(self, op, **m):
        weight, bias = m.get("w"), m.get("b")
        if not self.one_weight:
            weight = op.initializer(packed_weight([m[f"w{name}"] for name in NAMES], axis=1))
            bias = packed_bias(op, m, NAMES)
        count = weight.const_value.shape[1] // 3 // m["split_q"].shape[3]
        given: tuple[ir.Value | None, ...] = (m["x"], m.get("mask"), m["past_k"], m["past_v"], weight, bias, m["wo"], m.get("bo"))
        return op.FusedPastAttention(*given, num_heads=count, scale=scale_of(m), _domain=DOMAIN, _outputs=3)


RULES: list[pattern.RewriteRule] = [PastAttention.rule(False), PastAttention.rule(True)]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 2] x, float[B, S, 2] other, float[B, 2, P, 1] past_k, float[B, 2, P, 1] past_v, float[B, 1, S, T] mask)
  => (float[B, S, 2] y, float[B, 2, N, 1] present_k, float[B, 2, N, 1] present_v)
<float[2, 2] wq = {{1, 2, -3, 4}}, float[2, 2] wk = {{2, 1, 5, -1}}, float[2, 2] wv = {{3, 1, 4, 1}},
 float[2, 2] wo = {{5, 9, 2, 6}},
 float[2] bq = {{1, 2}}, float[2] bv = {{3, 5}}, float[2] bo = {{8, 9}}, float[6] b = {{1, 2, 3, 4, 5, 6}},
 float[2, 6] w = {{1, 2, 3, 4, 5, 6, 6, -5, 4, -3, 2, -1}},
 int64[4] heads = {{0, 0, 2, 1}}, int64[3] flat = {{0, 0, 2}},
 float[B, S, 2] q, float[B, S, 2] k, float[B, S, 2] v, float[B, 2, S, 1] c>
{{
  {body}
  sq = Reshape(q, heads)
  sk = Reshape(k, heads)
  sv = Reshape(v, heads)
  tq = Transpose <perm = [0, 2, 1, 3]> (sq)
  tk = Transpose <perm = [0, 2, 1, 3]> (sk)
  tv = Transpose <perm = [0, 2, 1, 3]> (sv)
  present_k = Concat <axis = {axis}> ({keys})
  present_v = Concat <axis = -2> (past_v, tv)
  kt = Transpose <perm = [0, 1, 3, 2]> (present_k)
  c = bertc.FusedSdpa <scale = 0.7> (tq, kt, present_v{mask})
  t = Transpose <perm = [0, 2, 1, 3]> (c)
  m = Reshape(t, flat)
  y = bertc.FusedLinear(m, wo, bo)
}}"""
_THREE = "q = bertc.FusedLinear(x, wq, bq)\nk = bertc.FusedLinear({}, wk)\nv = bertc.FusedLinear(x, wv, bv)"


def _text(body: str, mask: str = "", axis: int = 2, keys: str = "past_k, tk") -> str:
    return _GRAPH.format(body=body, mask=mask, axis=axis, keys=keys)


EXAMPLES: list[str] = [
    _text(_THREE.format("x")),
    _text("a = bertc.FusedLinear(x, w, b)\nq, k, v = Split <axis = 2, num_outputs = 3> (a)"),
    _text("a = bertc.FusedLinear(x, w)\nq, k, v = Split <axis = -1, num_outputs = 3> (a)", axis=-2),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_THREE.format("other")), "x bound to two different values"),
    (_text(_THREE.format("x"), axis=0), "are not appended to the cache"),
]
