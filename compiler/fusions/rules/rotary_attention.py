"""rotary_attention: attention whose queries and keys went through FusedRotary, as FusedRotaryAttention with packed weights.

    FusedRotaryAttention(x [B,S,H], mask, cos, sin, Wqkv [H,3*h*d], bqkv [3*h*d], Wo [h*d,N], bo [N]; num_heads, scale) -> [B,S,N]

Runs behind `rotary`. ModernBERT has one projection to [B,S,3,h,d], cut in three; ESM has three, and scales the queries before it
rotates them: a rotation keeps a factor, so it joins the scale. Su et al. 2021, section 3.2.2.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN
from .attention import ANY, NAMES, check_separate, check_shapes, merged, packed_bias, packed_weight, scale_of
from .rotary import cut

OP = "FusedRotaryAttention"


def rotated(op: Any, split: Any, name: str) -> Any:
    """[B,S,h,d] -> [B,h,S,d], scaled and rotated, or for k [B,h,d,S]; v is only transposed."""
    turned = op.Transpose(split, perm=[0, 2, 1, 3])
    if name == "v":
        return turned
    if name == "q":
        turned = pattern.OrValue([op.Mul(turned, pattern.Var("scale_q")), turned])
    made = op.FusedRotary(turned, pattern.Var("cos"), pattern.Var("sin"), _domain=DOMAIN)
    return op.Transpose(made, perm=[0, 1, 3, 2]) if name == "k" else made


class PackedRotaryAttention(pattern.RewriteRuleClassBase):
    """One projection to [B,S,3,h,d], of which each part is cut out."""

    def pattern(self, op, x):
        linear = op.FusedLinear(x, pattern.Var("w"), pattern.Var("b", can_match_none=True), _domain=DOMAIN)
        view = op.Reshape(linear, ANY, _outputs=["view"])
        parts = []
        for name in NAMES:
            part = op.Slice(view, _allow_other_inputs=True, _outputs=[f"part_{name}"])
            parts.append(rotated(op, op.Squeeze(part, ANY, _outputs=[f"split_{name}"]), name))
        return merged(op, *parts)

    def check(self, context, **m):
        result = pattern.MatchResult()
        view = m["view"]
        if view.shape is None or len(view.shape) != 5 or view.shape[2] != 3:
            return result.fail("the packed projection is not split into [batch, length, 3, heads, size]", view)
        wrong = [m[f"part_{name}"] for i, name in enumerate(NAMES) if cut(m[f"part_{name}"]) != (2, i, i + 1)]
        if wrong:
            return result.fail("q, k and v are not the three parts in order", wrong[0])
        return check_shapes(m, m["w"].const_value.shape[1] // 3)

    def rewrite(self, op, **m):
        return _made(op, m, m["w"], m.get("b"), m["w"].const_value.shape[1] // 3)


class RotaryAttention(pattern.RewriteRuleClassBase):
    """Three projections of one input."""

    def pattern(self, op, x):
        parts = []
        for name in NAMES:
            b = pattern.Var(f"b{name}", can_match_none=True)
            linear = op.FusedLinear(x, pattern.Var(f"w{name}"), b, _domain=DOMAIN)
            parts.append(rotated(op, op.Reshape(linear, ANY, _outputs=[f"split_{name}"]), name))
        return merged(op, *parts)

    def check(self, context, **m):
        return check_separate(m)

    def rewrite(self, op, **m):
        weight = op.initializer(packed_weight([m[f"w{name}"] for name in NAMES], axis=1))
        return _made(op, m, weight, packed_bias(op, m, NAMES), m["wq"].const_value.shape[1])


def _made(op: Any, m: dict[str, Any], weight: ir.Value, bias: ir.Value | None, width: int) -> Any:
    inputs = (m["x"], m.get("mask"), m["cos"], m["sin"], weight, bias, m["wo"], m.get("bo"))
    heads = width // m["split_q"].shape[3]
    return op.FusedRotaryAttention(*inputs, num_heads=heads, scale=scale_of(m), _domain=DOMAIN)


RULES: list[pattern.RewriteRule] = [PackedRotaryAttention.rule(), RotaryAttention.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 4] x, float[B, S, 4] other, float[B, 1, 1, S] mask, float[1, 1, S, 2] cos, float[1, 1, S, 2] sin)
=> (float[B, S, 4] y)
<float[4, 4] wq = {{1, 2, -3, 4, 2, 1, 5, -1, 3, 1, 4, 1, 5, 9, 2, 6}},
 float[4, 4] wk = {{2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5}},
 float[4, 4] wv = {{1, 4, 1, 4, 2, 1, 3, 5, 6, 2, 3, 7, 3, 0, 9, 5}},
 float[4, 4] wo = {{1, 6, 1, 8, 0, 3, 3, 9, 8, 8, 7, 4, 9, 8, 9, 4}},
 float[4] bq = {{1, 2, 3, 4}}, float[4] bv = {{3, 5, 1, 2}}, float[4] bo = {{8, 9, 1, 1}}, float f = {{0.3}},
 float[2] bf = {{0.3, 0.4}},
 float[4, 12] w = {{{many}}}, float[12] b = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}},
 int64[4] heads = {{0, 0, 2, 2}}, int64[5] five = {{0, 0, 3, 2, 2}}, int64[3] flat = {{0, 0, 4}}, int64[1] axis = {{2}},
 int64[1] n0 = {{0}}, int64[1] n1 = {{1}}, int64[1] n2 = {{2}}, int64[1] n3 = {{3}},
 float[B, S, 4] q, float[B, S, 4] k, float[B, S, 4] v, float[B, S, 12] p, float[B, 2, S, 2] rq, float[B, 2, S, 2] rk,
 float[B, 2, S, 2] c>
{{
  {body}
  tq = Transpose <perm = [0, 2, 1, 3]> (sq)
  tk = Transpose <perm = [0, 2, 1, 3]> (sk)
  tv = Transpose <perm = [0, 2, 1, 3]> (sv)
  {scaled}
  rk = bertc.FusedRotary(tk, cos, sin)
  kt = Transpose <perm = [0, 1, 3, 2]> (rk)
  c = bertc.FusedSdpa <scale = 0.7> (rq, kt, tv, mask)
  tc = Transpose <perm = [0, 2, 1, 3]> (c)
  side = Reshape(tc, flat)
  y = bertc.FusedLinear(side, wo, bo)
}}"""
_MANY = ", ".join(str(n % 7 - 3) for n in range(48))
_PLAIN, _SCALED = "rq = bertc.FusedRotary(tq, cos, sin)", "mq = Mul(tq, f)\nrq = bertc.FusedRotary(mq, cos, sin)"
_PACKED = (
    "p = bertc.FusedLinear(x, w, b)\nv5 = Reshape(p, five)\n"
    "pq = Slice(v5, n0, n1, axis)\nsq = Squeeze(pq, axis)\n"
    "pk = Slice(v5, n1, n2, axis)\nsk = Squeeze(pk, axis)\n"
    "pv = Slice(v5, n2, n3, axis)\nsv = Squeeze(pv, axis)"
)
_THREE = (
    "q = bertc.FusedLinear(x, wq, bq)\nk = bertc.FusedLinear({k}, wk)\nv = bertc.FusedLinear(x, wv, bv)\n"
    "sq = Reshape(q, heads)\nsk = Reshape(k, heads)\nsv = Reshape(v, heads)"
)


def _text(body: str, scaled: str = _PLAIN) -> str:
    return _GRAPH.format(body=body, scaled=scaled, many=_MANY)


EXAMPLES: list[str] = [_text(_PACKED), _text(_THREE.format(k="x")), _text(_THREE.format(k="x"), _SCALED)]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_PACKED.replace("n1, n2, axis", "n2, n3, axis")), "q, k and v are not the three parts in order"),
    (_text(_THREE.format(k="other")), "x bound to two different values"),
    (_text(_THREE.format(k="x"), _SCALED.replace("f)", "bf)")), "q is multiplied by something that is not a constant number"),
]
