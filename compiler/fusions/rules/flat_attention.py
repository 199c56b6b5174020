"""flat_attention: torch's multi_head_attention_forward, heads folded into the batch, as FusedAttention with packed weights.

    FusedAttention(x [B,S,H], mask, Wqkv [H,3*h*d], bqkv [3*h*d], Wo [h*d,N], bo [N]; num_heads, scale) -> [B,S,N]

The function runs length first ([S,B,H]) and takes its products over [B*h,S,d]. What is added to the scores, [B*h,S,S], is
unfolded to [B,h,S,S] and may be anything: WavLM adds relative positions, gated by what the layer reads (Chen et al. 2022,
section III-A).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number, same_dim
from .attention import ANY, NAMES, packed_bias, packed_weight

OP = "FusedAttention"
SWAP = [1, 0, 2]


class FlatAttention(pattern.RewriteRuleClassBase):
    """With something added to the scores."""

    def pattern(self, op, x, scale_q, added):
        turned = op.Transpose(x, perm=SWAP)
        q, k_t, v = (_folded(op, turned, name) for name in NAMES)
        product = op.MatMul(op.Mul(q, scale_q), k_t)
        p = op.Softmax(pattern.OrValue([op.Add(product, added), op.Add(added, product)]), axis=-1)
        side_by_side = op.Reshape(op.Transpose(op.MatMul(p, v), perm=SWAP), ANY, _outputs=["merged"])
        b = pattern.Var("bo", can_match_none=True)
        y = op.FusedLinear(side_by_side, pattern.Var("wo"), b, _domain=DOMAIN)
        return op.Transpose(op.Reshape(y, ANY, _outputs=["unfolded"]), perm=SWAP)

    def check(self, context, x, added, **m):
        result = pattern.MatchResult()
        shapes = {tuple(m[f"w{name}"].const_value.shape.numpy()) for name in NAMES}
        if len(shapes) != 1:
            return result.fail("q, k and v are of different sizes", m["wk"])
        width = shapes.pop()[1]
        if x.shape is None or len(x.shape) != 3:
            return result.fail("the input is not known to be [batch, length, width]", x)
        splits = [m[f"split_{name}"] for name in NAMES]
        for split in splits:
            if split.shape is None or len(split.shape) != 3 or not isinstance(split.shape[2], int):
                return result.fail("the size of a head is not known", split)
            if width % split.shape[2] or split.shape[2] != splits[0].shape[2] or not same_dim(split.shape[0], x.shape[1]):
                return result.fail("the heads do not make up the projection", split)
        if constant_number(m["scale_q"]) is None:
            return result.fail("q is multiplied by something that is not a constant number", m["scale_q"])
        if added.shape is None or len(added.shape) != 3 or not all(same_dim(dim, x.shape[1]) for dim in added.shape[1:]):
            return result.fail("the term added to the scores is not known to be [batch * heads, length, length]", added)
        back = m["unfolded"].shape
        if back is None or len(back) != 3 or not same_dim(back[0], x.shape[1]) or not same_dim(back[1], x.shape[0]):
            return result.fail("the result is not unfolded to [length, batch, width]", m["unfolded"])
        return result

    def rewrite(self, op, x, scale_q, added, **m):
        heads = m["wq"].const_value.shape[1] // m["split_q"].shape[2]
        weight = op.initializer(packed_weight([m[f"w{name}"] for name in NAMES], axis=1))
        inputs = (x, _unfolded(op, x, added, heads), weight, packed_bias(op, m, NAMES), m["wo"], m.get("bo"))
        return op.FusedAttention(*inputs, num_heads=heads, scale=float(constant_number(scale_q) or 0.0), _domain=DOMAIN)


def _folded(op: Any, turned: Any, name: str) -> Any:
    """[S,B,H] -> [S,B*h,d] -> [B*h,S,d], or for k [B*h,d,S] (clean-up merges Transposes)."""
    b = pattern.Var(f"b{name}", can_match_none=True)
    linear = op.FusedLinear(turned, pattern.Var(f"w{name}"), b, _domain=DOMAIN)
    split = op.Reshape(linear, ANY, _outputs=[f"split_{name}"])
    return op.Transpose(split, perm=[1, 2, 0] if name == "k" else SWAP)


def _unfolded(op: Any, x: ir.Value, added: ir.Value, heads: int) -> ir.Value:
    """[B*h,S,S] -> [B,h,S,S]."""
    squares = op.Shape(added, start=1)
    squares.shape, squares.dtype = ir.Shape([2]), ir.DataType.INT64
    wanted = op.Concat(op.initializer(ir.tensor([-1, heads], dtype=ir.DataType.INT64), name=f"unfold.{heads}"), squares, axis=0)
    wanted.shape, wanted.dtype = ir.Shape([4]), ir.DataType.INT64
    made = op.Reshape(added, wanted)
    made.shape, made.dtype = ir.Shape([x.shape[0], heads, *added.shape[1:]]), added.dtype  # type: ignore
    return made


RULES: list[pattern.RewriteRule] = [FlatAttention.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 4] x, float[B, 2, S, S] bias, float z) => (float[B, S, 4] y)
<float[4, 4] wq = {{1, 2, -3, 4, 2, 1, 5, -1, 3, 1, 4, 1, 5, 9, 2, 6}},
 float[4, 4] wk = {{2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5}},
 float[4, 4] wv = {{1, 4, 1, 4, 2, 1, 3, 5, 6, 2, 3, 7, 3, 0, 9, 5}},
 float[4, 4] wo = {{1, 6, 1, 8, 0, 3, 3, 9, 8, 8, 7, 4, 9, 8, 9, 4}},
 float[12] b3 = {{1, 2, 3, 4, 4, 1, 2, 3, 3, 5, 1, 2}}, float[4] bo = {{8, 9, 1, 1}}, float f = {{0.05}},
 float[2] ff = {{0.05, 0.1}},
 int64[1] h = {{2}}, int64[1] four = {{4}}, int64[2] flat = {{-1, 4}},
 float[S, B, 4] q, float[S, B, 4] k, float[S, B, 4] v, float[N, 4] o>
{{
  bs = Shape <end = 1> (x)
  ls = Shape <start = 1, end = 2> (x)
  bh = Mul(bs, h)
  squares = Concat <axis = 0> (bh, ls, ls)
  fold = Concat <axis = 0> (ls, bh, h)
  back = Concat <axis = 0> (ls, bs, four)
  added = Reshape(bias, squares)
  t = Transpose <perm = [1, 0, 2]> (x)
  bq, bk, bv = Split <axis = 0, num_outputs = 3> (b3)
  q = bertc.FusedLinear(t, wq, bq)
  k = bertc.FusedLinear(t, wk, bk)
  v = bertc.FusedLinear(t, wv, bv)
  sq = Reshape(q, fold)
  tq = Transpose <perm = [1, 0, 2]> (sq)
  mq = Mul(tq, {scale})
  sk = Reshape(k, fold)
  kt = Transpose <perm = [1, 2, 0]> (sk)
  sv = Reshape(v, fold)
  tv = Transpose <perm = [1, 0, 2]> (sv)
  a = MatMul(mq, kt)
  scores = Add({total})
  p = Softmax <axis = -1> (scores)
  c = MatMul(p, tv)
  tc = Transpose <perm = [1, 0, 2]> (c)
  side = Reshape(tc, flat)
  o = bertc.FusedLinear(side, wo, bo)
  u = Reshape(o, back)
  y = Transpose <perm = [1, 0, 2]> (u)
}}"""


def _text(total: str = "a, added", scale: str = "f") -> str:
    return _GRAPH.format(total=total, scale=scale)


EXAMPLES: list[str] = [_text(), _text("added, a")]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(scale="ff"), "q is multiplied by something that is not a constant number"),
    (_text("a, z"), "the term added to the scores is not known to be [batch * heads, length, length]"),
]
