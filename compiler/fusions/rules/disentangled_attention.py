"""disentangled_attention: attention of DeBERTa-v2 and v3, from its projections to its output, as FusedDisentangledAttention.

    scores = scale * (q k_t + gather(q pos_k_t, c2p) + gather(k pos_q_t, p2c)_t), masked        He et al. 2021, section 3.1

transformers folds the heads into the batch ([B*h,S,d]) for the products, and unfolds them for the mask and the softmax. The three
terms are divided by one number, sqrt(3 d). pos_k and pos_q are what it projects of its relative embeddings, before it repeats
them for every row of the batch; the indices are those before they are expanded to it. The mask is a Where: score + low is low
for finfo.min in float32, so that rows that attend to nothing stay what they were.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number
from .attention import ANY, NAMES, check_shapes, packed_bias, packed_weight
from .sdpa import _as_added

OP = "FusedDisentangledAttention"
FLIP = [0, 2, 1]


class DisentangledAttention(pattern.RewriteRuleClassBase):
    """Both terms, content to position and position to content, as DeBERTa-v2 and v3 are trained."""

    def pattern(self, op, x, s, s_c2p, s_p2c, drop, low):
        q, k, v = (_folded(op, x, name) for name in NAMES)
        content = op.MatMul(q, op.Div(op.Transpose(k, perm=FLIP), s))
        c2p = op.Div(_looked_up(op, q, "c2p"), s_c2p)
        p2c = op.Div(op.Transpose(_looked_up(op, k, "p2c"), perm=FLIP), s_p2c)
        scores = op.Reshape(op.Add(content, op.Add(c2p, p2c)), ANY, _outputs=["scores"])
        p = op.Softmax(op.Where(drop, low, scores), axis=-1)
        mixed = op.Reshape(op.MatMul(op.Reshape(p, ANY), v), ANY)
        side_by_side = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), ANY, _outputs=["merged"])
        return op.FusedLinear(side_by_side, pattern.Var("wo"), pattern.Var("bo", can_match_none=True), _domain=DOMAIN)

    def check(self, context, **m):
        result = pattern.MatchResult()
        shapes = {tuple(m[f"w{name}"].const_value.shape.numpy()) for name in NAMES}
        if len(shapes) != 1:
            return result.fail("q, k and v are of different sizes", m["wk"])
        if constant_number(m["s"]) is None or not constant_number(m["s"]) == constant_number(m["s_c2p"]) == constant_number(
            m["s_p2c"]
        ):
            return result.fail("the terms of the scores are not divided by the same constant", m["s_c2p"])
        lowest = constant_number(m["low"])
        if lowest is None or lowest > -1e4:
            return result.fail("masked scores do not get a large negative number", m["low"])
        if m["scores"].shape is None or len(m["scores"].shape) != 4:
            return result.fail("the scores are not known to be [batch, heads, length, length]", m["scores"])
        for name in ("c2p", "p2c"):
            if fault := _fault(m, name):
                return result.fail(fault, m[f"index_{name}"])
        return check_shapes(m, shapes.pop()[1])

    def rewrite(self, op, x, s, drop, low, **m):
        weight = op.initializer(packed_weight([m[f"w{name}"] for name in NAMES], axis=1))
        projections = (weight, packed_bias(op, m, NAMES), m["wo"], m.get("bo"))
        positions = (m["table_c2p"], _narrow(m["index_c2p"]), m["table_p2c"], _narrow(m["index_p2c"]))
        heads = m["wq"].const_value.shape[1] // m["split_q"].shape[3]
        mask = _as_added(op, drop, low, False)
        return op.FusedDisentangledAttention(
            x, mask, *projections, *positions, num_heads=heads, scale=1 / float(constant_number(s) or 1.0), _domain=DOMAIN
        )


def _folded(op: Any, x: Any, name: str) -> Any:
    """[B,S,H] -> [B,S,h,d] -> [B,h,S,d] -> [B*h,S,d]."""
    b = pattern.Var(f"b{name}", can_match_none=True)
    split = op.Reshape(op.FusedLinear(x, pattern.Var(f"w{name}"), b, _domain=DOMAIN), ANY, _outputs=[f"split_{name}"])
    return op.Reshape(op.Transpose(split, perm=[0, 2, 1, 3]), ANY)


def _looked_up(op: Any, folded: Any, name: str) -> Any:
    """Products with the position vectors, those that the index names."""
    table = op.Transpose(op.Tile(pattern.Var(f"table_{name}"), ANY), perm=FLIP)
    return op.GatherElements(op.MatMul(folded, table), pattern.Var(f"index_{name}"), _outputs=[f"gather_{name}"])


def _narrow(index: ir.Value) -> ir.Value | None:
    """What an index was expanded from, for the whole batch; all layers share it, so it is no part of the pattern."""
    node = index.producer()
    return node.inputs[0] if node is not None and node.op_type == "Expand" else None


def _fault(m: dict[str, Any], name: str) -> str:
    """Why a term is no look-up of relative positions, or ''."""
    table, index = m[f"table_{name}"], _narrow(m[f"index_{name}"])
    axis = m[f"gather_{name}"].producer().attributes.get("axis")
    if axis is None or axis.as_int() not in (-1, 2):
        return "a look-up is not along the last axis"
    if table.shape is None or len(table.shape) != 3 or not all(isinstance(dim, int) for dim in table.shape):
        return "the position vectors are not known to be [heads, positions, size]"
    if index is None or index.shape is None or len(index.shape) != 3 or index.shape[0] != 1:
        return "the relative positions are not known to be [1, length, length]"
    if index.dtype != ir.DataType.INT64:
        return "the relative positions are not int64"
    return ""


RULES: list[pattern.RewriteRule] = [DisentangledAttention.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 4] x, float[B, S, 4] other, bool[B, 1, S, S] drop, int64[{rows}, S, S] ic, int64[1, S, S] ip) => (float[B, S, 4] y)
<float[4, 4] wq = {{1, 2, -3, 4, 2, 1, 5, -1, 3, 1, 4, 1, 5, 9, 2, 6}},
 float[4, 4] wk = {{2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5}},
 float[4, 4] wv = {{1, 4, 1, 4, 2, 1, 3, 5, 6, 2, 3, 7, 3, 0, 9, 5}},
 float[4, 4] wo = {{1, 6, 1, 8, 0, 3, 3, 9, 8, 8, 7, 4, 9, 8, 9, 4}},
 float[4] bq = {{1, 2, 3, 4}}, float[4] bk = {{4, 1, 2, 3}}, float[4] bv = {{3, 5, 1, 2}}, float[4] bo = {{8, 9, 1, 1}},
 float[2, 3, 2] tk = {{1, 2, -3, 4, 2, 1, 5, -1, 3, 1, 4, 1}}, float[2, 3, 2] tq = {{2, 7, 1, 8, 2, -8, 1, 8, 2, 8, 4, 5}},
 float s = {{40}}, float r = {{{r}}}, float low = {{{low}}}, int64[1] one = {{1}},
 int64[4] heads = {{0, 0, 2, 2}}, int64[3] flat = {{0, 0, 4}},
 int64[1] h = {{2}}, int64[1] d = {{2}}, int64[1] all = {{-1}}, float[B, S, 4] q, float[B, S, 4] k, float[B, S, 4] v>
{{
  bs = Shape <end = 1> (x)
  ls = Shape <start = 1, end = 2> (x)
  rep = Concat <axis = 0> (bs, one, one)
  bh = Mul(bs, h)
  fold = Concat <axis = 0> (bh, ls, d)
  squares = Concat <axis = 0> (bh, ls, ls)
  unfold = Concat <axis = 0> (bs, h, ls, ls)
  back = Concat <axis = 0> (bs, h, ls, d)
  q = bertc.FusedLinear({first}, wq, bq)
  k = bertc.FusedLinear(x, wk, bk)
  v = bertc.FusedLinear(x, wv, bv)
  sq = Reshape(q, heads)
  hq = Transpose <perm = [0, 2, 1, 3]> (sq)
  fq = Reshape(hq, fold)
  sk = Reshape(k, heads)
  hk = Transpose <perm = [0, 2, 1, 3]> (sk)
  fk = Reshape(hk, fold)
  sv = Reshape(v, heads)
  hv = Transpose <perm = [0, 2, 1, 3]> (sv)
  fv = Reshape(hv, fold)
  kt = Transpose <perm = [0, 2, 1]> (fk)
  ks = Div(kt, s)
  cc = MatMul(fq, ks)
  tk2 = Tile(tk, rep)
  tkt = Transpose <perm = [0, 2, 1]> (tk2)
  cp = MatMul(fq, tkt)
  ec = Expand(ic, squares)
  gc = GatherElements <axis = -1> (cp, ec)
  dc = Div(gc, r)
  tq2 = Tile(tq, rep)
  tqt = Transpose <perm = [0, 2, 1]> (tq2)
  pc = MatMul(fk, tqt)
  ep = Expand(ip, squares)
  gp = GatherElements <axis = -1> (pc, ep)
  gt = Transpose <perm = [0, 2, 1]> (gp)
  dp = Div(gt, s)
  rel = Add(dc, dp)
  total = Add(cc, rel)
  scores = Reshape(total, unfold)
  masked = Where(drop, low, scores)
  p = Softmax <axis = -1> (masked)
  p3 = Reshape(p, squares)
  c3 = MatMul(p3, fv)
  c = Reshape(c3, back)
  tc = Transpose <perm = [0, 2, 1, 3]> (c)
  side = Reshape(tc, flat)
  y = bertc.FusedLinear(side, wo, bo)
}}"""


def _text(first: str = "x", r: float = 40, low: float = -3.4028234663852886e38, rows: str = "1") -> str:
    return _GRAPH.format(first=first, r=r, low=low, rows=rows)


EXAMPLES: list[str] = [_text()]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(first="other"), "x bound to two different values"),
    (_text(r=41), "the terms of the scores are not divided by the same constant"),
    (_text(low=-1), "masked scores do not get a large negative number"),
    (_text(rows="B"), "the relative positions are not known to be [1, length, length]"),
]
