"""cross_attention: a decoder's attention to its encoder, with its projections, as FusedCrossAttention with packed weights.

    FusedCrossAttention(x [B,S,H], memory [B,T,M], mask, Wq [H,h*d], bq, Wkv [M,2*h*d], bkv, Wo [h*d,N], bo; num_heads, scale)

Runs behind `linear` and `sdpa`, and behind `attention`, which takes those whose x and memory are one. Projections, heads and
checks are those of `attention`; Wkv holds the columns of k, then of v. Vaswani et al. 2017, section 3.2.3.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, same_dim
from .attention import (
    check_shapes,
    heads,
    in_length_first,
    merged,
    packed_bias,
    packed_weight,
    projected,
    scale_of,
    swapped,
    swapped_back,
)

OP = "FusedCrossAttention"
READ = ("k", "v")


class CrossAttention(pattern.RewriteRuleClassBase):
    """q of one sequence, k and v of another."""

    def __init__(self, length_first: bool) -> None:
        super().__init__("cross_attention" + ("_length_first" if length_first else ""))
        self.length_first = length_first

    def pattern(self, op, x, memory):
        q = heads(op, projected(op, x, "q"), "q", self.length_first)
        k, v = (heads(op, projected(op, memory, name), name, self.length_first) for name in READ)
        return merged(op, q, k, v, self.length_first)

    def check(self, context, **m):
        result = pattern.MatchResult()
        shapes = {tuple(m[f"w{name}"].const_value.shape.numpy()) for name in READ}
        if len(shapes) != 1 or m["wq"].const_value.shape[1] != next(iter(shapes))[1]:
            return result.fail("q, k and v are of different sizes", m["wk"])
        x, memory = m["x"], m["memory"]
        if x is memory:
            return result.fail("queries and keys come from the same sequence", x)
        if any(value.shape is None or len(value.shape) != 3 for value in (x, memory)):
            return result.fail("x or memory is not known to be [batch, length, width]", memory)
        batch = int(self.length_first)
        if not same_dim(x.shape[batch], memory.shape[batch]):
            return result.fail("the two sequences are not known to have the same batch", memory)
        return check_shapes({**m, "other": memory}, shapes.pop()[1])

    def rewrite(self, op, **m):
        weight = op.initializer(packed_weight([m[f"w{name}"] for name in READ], axis=1))
        bias = packed_bias(op, m, READ)
        count = m["wq"].const_value.shape[1] // m["split_q"].shape[3]
        x, memory = (swapped(op, m[name]) if self.length_first else m[name] for name in ("x", "memory"))
        given: tuple[ir.Value | None, ...] = (x, memory, m.get("mask"), m["wq"], m.get("bq"), weight, bias)
        made = op.FusedCrossAttention(*given, m["wo"], m.get("bo"), num_heads=count, scale=scale_of(m), _domain=DOMAIN)
        return swapped_back(op, made, m["x"], m["wo"]) if self.length_first else made


RULES: list[pattern.RewriteRule] = [CrossAttention.rule(False), CrossAttention.rule(True)]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 2] x, float[{B}, T, 3] memory, float[B, T, 3] third, float[B, 1, 1, T] mask) => (float[B, S, 2] y)
<float[2, 4] wq = {{1, 2, -3, 4, 2, 2, 1, -1}}, float[3, 4] wk = {{2, 1, 5, -1, 0, 1, 3, 2, -2, 1, 1, 1}},
 float[3, 4] wv = {{3, 1, 4, 1, -5, 9, 2, 6, 5, 3, 5, -8}}, float[4, 2] wo = {{5, 9, 2, 6, 5, 3, 5, 8}},
 float[4] bq = {{1, 2, 3, 4}}, float[4] bv = {{3, 5, -1, 2}}, float[2] bo = {{8, 9}}, float f = {{0.3}},
 int64[4] heads = {{0, 0, 2, 2}}, int64[3] flat = {{0, 0, 4}},
 float[B, S, 4] q, float[{B}, T, 4] k, float[{B}, T, 4] v, float[B, 2, S, 2] c>
{{
  {body}
  sq = Reshape(q, heads)
  sk = Reshape(k, heads)
  sv = Reshape(v, heads)
  tq = Transpose <perm = [0, 2, 1, 3]> (sq)
  tk = Transpose <perm = [0, 2, 3, 1]> (sk)
  tv = Transpose <perm = [0, 2, 1, 3]> (sv)
  c = bertc.FusedSdpa <scale = 0.7> (tq, tk, tv, mask)
  t = Transpose <perm = [0, 2, 1, 3]> (c)
  m = Reshape(t, flat)
  y = bertc.FusedLinear(m, wo, bo)
}}"""
_K, _V = "k = bertc.FusedLinear(memory, wk)\n", "v = bertc.FusedLinear(memory, wv, bv)"
EXAMPLES: list[str] = [
    _GRAPH.format(B="B", body="q = bertc.FusedLinear(x, wq, bq)\n" + _K + _V),
    _GRAPH.format(B="B", body="a = bertc.FusedLinear(x, wq)\nq = Mul(a, f)\n" + _K + "v = bertc.FusedLinear(memory, wv)"),
    in_length_first(_GRAPH.format(B="B", body="q = bertc.FusedLinear(x, wq, bq)\n" + _K + _V)),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(B="B", body="q = bertc.FusedLinear(x, wq)\n" + _K + _V.replace("memory", "third")), "memory bound to two"),
    (_GRAPH.format(B="R", body="q = bertc.FusedLinear(x, wq)\n" + _K + _V), "not known to have the same batch"),
    (
        in_length_first(_GRAPH.format(B="R", body="q = bertc.FusedLinear(x, wq)\n" + _K + _V)),
        "not known to have the same batch",
    ),
]
