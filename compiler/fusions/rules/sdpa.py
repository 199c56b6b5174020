"""sdpa: scaled dot-product attention as exporters spell it, as FusedSdpa(q, k_t, v, mask; scale).

    softmax(scale * q @ k_t + mask) @ v        Vaswani et al. 2017, section 3.2.1

q is [B,h,S,d], k_t is [B,h,d,T], v is [B,h,T,d]; the mask is added to the scores and broadcasts to [B,h,S,T]. The scale may
stand on the scores (Mul or Div), on q, on k, or as its square root on both. Two terms added to the scores (a relative position
bias and a mask: MPNet, T5) become one, their Add stays outside. Where(keep, scores, low) (masked_fill) becomes a mask of 0 and
low: in fp32, score + low is low for finfo.min, so also rows that attend to nothing stay what they were. A low such as -10000
would leave them their scores when it is added, and finfo.min takes its place.

torch's sdpa ends in IsNaN -> 0, for rows that attend to nothing under a mask of -inf. The tail is dropped. It never fires under
a finite mask; where the mask may hold -inf, it is bounded from below by cleanup.LOW first, so that no NaN is made: such a row
becomes the mean of the values instead of 0. All other rows keep their numbers. Without the tail, a mask stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, MASK_LOW, constant_number, same_dim

OP = "FusedSdpa"
LOWEST = float(np.finfo(np.float32).min)
SWALLOWS = -1e9  # what this or less is added to, it takes the place of


class Sdpa(pattern.RewriteRuleClassBase):
    """MatMul, Softmax, MatMul; with or without constants on q or k."""

    RANK, SHAPE = 4, "[batch, heads, length, size]"  # of q, k and v

    def __init__(self, on_operands: bool) -> None:
        super().__init__("sdpa" + ("_scaled_operands" if on_operands else ""))
        self.on_operands = on_operands

    def pattern(self, op, q, k_t, v, s_q, s_k, s, mask, bias, keep, low, zero):
        either = pattern.OrValue
        if self.on_operands:
            q = either([op.Mul(q, s_q), op.Div(q, s_q), q], tag_var="on_q", tag_values=["Mul", "Div", ""])
            k_t = either([op.Mul(k_t, s_k), op.Div(k_t, s_k), k_t], tag_var="on_k", tag_values=["Mul", "Div", ""])
        product = op.MatMul(q, k_t)
        tags = ["Mul", "Mul", "Div", ""]
        scores = either([op.Mul(product, s), op.Mul(s, product), op.Div(product, s), product], tag_var="on", tag_values=tags)
        alternatives = [
            op.Add(op.Add(scores, bias), mask),
            op.Add(scores, mask),
            op.Add(mask, scores),
            op.Where(keep, scores, low),
            op.Where(keep, low, scores),
            scores,
        ]
        kinds = ["two", "add", "add", "keep", "drop", ""]
        p = op.Softmax(either(alternatives, tag_var="kind", tag_values=kinds), _outputs=["p"])
        p = either([op.Where(op.IsNaN(p), zero, p), p], tag_var="tail", tag_values=[True, False])
        return op.MatMul(p, v)

    def check(self, context, q, k_t, v, p, s=None, zero=None, mask=None, low=None, **rest):
        result = pattern.MatchResult()
        for value, what in ((q, "q"), (k_t, "k"), (v, "v")):
            if value.shape is None or len(value.shape) != self.RANK:
                return result.fail(f"{what} is not known to be {self.SHAPE}", value)
        if rest["on"] and constant_number(s) is None:
            return result.fail("the scale is not a constant number", s)
        axis = p.producer().attributes.get("axis")
        if axis is not None and axis.as_int() not in (-1, self.RANK - 1):
            return result.fail("the softmax is not over the last axis", p)
        if rest["tail"] and constant_number(zero) != 0.0:
            return result.fail("NaN is replaced by something other than 0", zero)
        if rest["kind"] in ("keep", "drop") and constant_number(low) is None:
            return result.fail("the value of masked scores is not a constant number", low)
        if rest["kind"] in ("keep", "drop") and constant_number(low) > -1e4:
            return result.fail("masked scores do not get a large negative number", low)
        if mask is not None and (mask.shape is None or len(mask.shape) > self.RANK):
            return result.fail("the mask is not known to broadcast to [batch, heads, length, length]", mask)
        if self.on_operands and (not (rest["on_q"] or rest["on_k"]) or operands(q, k_t, rest) is None):
            return result.fail("q or k is multiplied by something that is not a constant number", q)
        return result

    def rewrite(self, op, q, k_t, v, s=None, mask=None, bias=None, keep=None, low=None, **rest):
        scale, terms = _factor(rest["on"], s), [value for value in (mask, bias, keep) if value is not None]
        if self.on_operands:
            q, k_t, more = operands(q, k_t, rest)
            scale *= more
        if rest["kind"] == "two":
            mask = op.Add(bias, mask)
        if rest["kind"] in ("keep", "drop"):
            mask = _as_added(op, keep, low, rest["kind"] == "keep")
        elif rest["tail"] and mask is not None and any(may_be_infinite(m) for m in (mask, bias) if m is not None):
            mask = op.Max(mask, _constant(op, MASK_LOW, q.dtype))
        return self.attended(op, (q, k_t, v), mask, terms, scale)

    def attended(self, op, operands, mask, terms, scale):
        """`mask` is made of `terms`, whose shapes are known."""
        q, k_t, v = operands
        return op.FusedSdpa(q, k_t, v, mask, scale=scale, _domain=DOMAIN)


def _factor(kind: str, s: ir.Value | None) -> float:
    value = constant_number(s)
    return 1.0 if not kind or value is None else value if kind == "Mul" else 1 / value


def operands(q: ir.Value, k_t: ir.Value, rest: Any) -> tuple[ir.Value, ir.Value, float] | None:
    """(q, k_t, the product of their constants), each constant on either side of its Mul; None if one is no constant."""
    made, scale = [], 1.0
    for value, s, kind in ((q, rest.get("s_q"), rest["on_q"]), (k_t, rest.get("s_k"), rest["on_k"])):
        if kind == "Mul" and constant_number(s) is None:
            value, s = s, value
        if kind and constant_number(s) is None:
            return None
        made.append(value)
        scale *= _factor(kind, s)
    return made[0], made[1], scale


def _constant(op: Any, value: float, dtype: ir.DataType | None) -> ir.Value:
    """An initializer, not a Constant node: the typing pass gives one that half precision cannot hold a stand-in."""
    tensor = ir.tensor(np.array(value, (dtype or ir.DataType.FLOAT).numpy()))
    return op.initializer(tensor, name=f"mask.{tensor.dtype.name.lower()}.{value!r}")


def _as_added(op: Any, keep: ir.Value, low: ir.Value | float, kept: bool, dtype: ir.DataType | None = None) -> ir.Value:
    """A bool mask as one that is added: 0 where `keep` is as `kept` says, low elsewhere; -inf becomes LOW."""
    lowest = low if isinstance(low, float) else constant_number(low)
    dtype = dtype if isinstance(low, float) else low.dtype
    if SWALLOWS < lowest != MASK_LOW and dtype == ir.DataType.FLOAT:
        lowest = LOWEST
    bottom = _constant(op, MASK_LOW if lowest == -math.inf else lowest, dtype)
    zero = _constant(op, 0.0, dtype)
    return op.Where(keep, *((zero, bottom) if kept else (bottom, zero)))


def may_be_infinite(value: ir.Value, seen: set[ir.Value] | None = None) -> bool:
    """Whether a float value may hold -inf, as far as the constants and graph inputs above it tell."""
    seen = set() if seen is None else seen
    if value in seen or (value.dtype is not None and not value.dtype.is_floating_point()):
        return False
    seen.add(value)
    if value.const_value is not None:
        return not bool(np.isfinite(value.const_value.numpy().astype(np.float32)).all())
    node = value.producer()
    if node is None:
        return True  # a graph input: the caller may feed anything
    if node.op_type == "FusedScoreMask":
        return False
    if node.op_type in ("Max", "Clip") and any(
        v is not None and math.isfinite(constant_number(v) or math.nan) for v in node.inputs[:2]
    ):
        return False
    inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs[:1] if node.op_type in ONE_INPUT else node.inputs
    return any(may_be_infinite(v, seen) for v in inputs if v is not None)


# What else these read are shapes and indices.
ONE_INPUT = frozenset({"Gather", "GatherElements", "GatherND", "Reshape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Transpose"})


class OnnxAttention(pattern.RewriteRuleClassBase):
    """The Attention op of ONNX opset 23: q, k, v as [B,h,S,d], or as [B,S,h*d] with q_num_heads."""

    def pattern(self, op, q, k, v):
        mask = pattern.Var("mask", can_match_none=True)
        return op.Attention(q, k, v, mask, _allow_other_inputs=True, _outputs=["out"])

    def check(self, context, q, k, v, out, mask=None, **_):
        result = pattern.MatchResult()
        node = out.producer()
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if any(value is not None for value in node.inputs[4:]):
            return result.fail("past keys and values are given", node)
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return result.fail("a second output is used", node)
        if attributes.get("is_causal", 0):
            return result.fail("is_causal: only a mask that is an input is fused", node)
        if attributes.get("softcap", 0.0):
            return result.fail("the scores are capped (softcap)", node)
        if any(value.shape is None for value in (q, k, v)):
            return result.fail("the shapes of q, k and v are not known", q)
        ranks = {len(value.shape) for value in (q, k, v)}
        if ranks not in ({3}, {4}):
            return result.fail("q, k and v are neither all 4-D nor all 3-D", q)
        if not all(isinstance(value.shape[-1], int) for value in (q, k, v)):
            return result.fail("the head size is not known", q)
        heads = (attributes.get("q_num_heads"), attributes.get("kv_num_heads")) if ranks == {3} else (q.shape[1], k.shape[1])
        if not (heads[0] == heads[1] if ranks == {3} else same_dim(*heads)):
            return result.fail("q has other heads than k and v (grouped queries)", k)
        if mask is not None and (mask.dtype is None or mask.shape is None):
            return result.fail("the mask's type or rank is not known", mask)
        return result

    def rewrite(self, op, q, k, v, out, mask=None, **_):
        attributes = {name: attribute.value for name, attribute in out.producer().attributes.items()}
        heads = attributes.get("q_num_heads", 0)
        if mask is not None and mask.dtype == ir.DataType.BOOL:
            mask = _as_added(op, mask, -math.inf, True, q.dtype)
        flat = len(q.shape) == 3
        if not flat:
            k_t = _transposed(op, k, [0, 1, 3, 2])
        else:
            q, k_t, v = (_heads(op, x, heads, perm) for x, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
        scale = attributes.get("scale") or 1 / math.sqrt(q.shape[3])
        result = op.FusedSdpa(q, k_t, v, mask, scale=float(scale), _domain=DOMAIN)
        result.shape, result.dtype = ir.Shape([*q.shape[:3], v.shape[3]]), q.dtype
        if not flat:
            return result
        merged = _transposed(op, result, [0, 2, 1, 3])
        return op.Reshape(merged, op.Constant(value_ints=[0, 0, heads * v.shape[3]]))


def _transposed(op: Any, x: ir.Value, perm: list[int]) -> ir.Value:
    made = op.Transpose(x, perm=perm)
    made.shape, made.dtype = ir.Shape([x.shape[i] for i in perm]), x.dtype
    return made


def _heads(op: Any, x: ir.Value, heads: int, perm: list[int]) -> ir.Value:
    size = x.shape[2] // heads  # type: ignore
    split = op.Reshape(x, op.Constant(value_ints=[0, 0, heads, size]))
    split.shape, split.dtype = ir.Shape([*x.shape[:2], heads, size]), x.dtype
    return _transposed(op, split, perm)


RULES: list[pattern.RewriteRule] = [Sdpa.rule(True), Sdpa.rule(False), OnnxAttention.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 23, "bertc" : 1]>
g (float[B, 2, S, 3] q, float[B, 2, 3, T] k_t, float[B, 2, T, 3] k, float[B, 2, T, 3] v, float[B, 1, 1, T] mask,
   float[1, 2, S, T] bias, bool[B, 1, 1, T] keep, float f) => (y)
<float s = {{0.7}}, float r = {{0.6}}, float zero = {{0}}, float one = {{1}}, float low = {{-30000}}>
{{
  {body}
}}"""
_SCORES = "a = MatMul(q, k_t)\nb = Mul(a, s)\n"
EXAMPLES: list[str] = [
    _GRAPH.format(body="a = MatMul(q, k_t)\np = Softmax <axis = -1> (a)\ny = MatMul(p, v)"),
    _GRAPH.format(body=_SCORES + "c = Add(b, mask)\np = Softmax <axis = -1> (c)\ny = MatMul(p, v)"),
    _GRAPH.format(body="a = MatMul(q, k_t)\nb = Div(a, s)\nc = Add(mask, b)\np = Softmax <axis = 3> (c)\ny = MatMul(p, v)"),
    _GRAPH.format(body=_SCORES + "c = Add(b, bias)\nd = Add(c, mask)\np = Softmax <axis = -1> (d)\ny = MatMul(p, v)"),
    _GRAPH.format(body=_SCORES + "c = Where(keep, b, low)\np = Softmax <axis = -1> (c)\ny = MatMul(p, v)"),
    _GRAPH.format(body=_SCORES + "c = Where(keep, low, b)\np = Softmax <axis = -1> (c)\ny = MatMul(p, v)"),
    _GRAPH.format(
        body="u = Mul(q, s)\nw = Mul(r, k_t)\na = MatMul(u, w)\nc = Add(a, mask)\np = Softmax <axis = -1> (c)\n"
        "n = IsNaN(p)\nz = Where(n, zero, p)\ny = MatMul(z, v)"
    ),
    _GRAPH.format(body="y = Attention(q, k, v, keep)"),
    _GRAPH.format(body="y = Attention <scale = 0.3> (q, k, v, mask)"),
]
_REST = "p = Softmax <axis = -1> (b)\ny = MatMul(p, v)"
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body="a = MatMul(q, k_t)\nb = Mul(a, f)\n" + _REST), "the scale is not a constant number"),
    (
        _GRAPH.format(body="a = MatMul(q, k_t)\nb = Where(keep, a, one)\n" + _REST),
        "masked scores do not get a large negative number",
    ),
    (_GRAPH.format(body=_SCORES + "p = Softmax <axis = 1> (b)\ny = MatMul(p, v)"), "not over the last axis"),
    (_GRAPH.format(body=_SCORES + "p = Softmax (b)\nn = IsNaN(p)\nz = Where(n, one, p)\ny = MatMul(z, v)"), "NaN is replaced"),
]
