"""attention: projections, head split, FusedSdpa, head merge and output projection, as FusedAttention with packed weights.

    FusedAttention(x [B,S,H], mask, Wqkv [H,3*h*d], bqkv [3*h*d], Wo [h*d,N], bo [N]; num_heads, scale) -> [B,S,N]

Runs behind `linear` and `sdpa`. Wqkv holds the columns of q, then k, then v, each with its heads in order: x @ Wqkv is what the
three products are, side by side. A bias that is missing beside others is packed as zeros: adding 0 changes nothing. Weights are
packed when they are read. What the reshapes do is checked by their shapes, not by how these were computed.

torch's multi_head_attention_forward runs length first: x is [S,B,H] and the heads are split off it by other Transposes. The
operator is batch first, between two Transposes; those that meet their opposite go.
Vaswani et al. 2017, section 3.2.2.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number, same_dim

OP = "FusedAttention"
NAMES = ("q", "k", "v")
ANY = pattern.ANY_VALUE
SWAP = [1, 0, 2]
# Whether length comes first -> how heads are split off (k turned for the product) and merged.
SPLIT = {False: [0, 2, 1, 3], True: [1, 2, 0, 3]}
SPLIT_K = {False: [0, 2, 3, 1], True: [1, 2, 3, 0]}
MERGE = {False: [0, 2, 1, 3], True: [2, 0, 1, 3]}


def projected(op: Any, x: Any, name: str) -> Any:
    """A FusedLinear with its optional bias; wav2vec2 of old transformers scales q right behind it."""
    b = pattern.Var(f"b{name}", can_match_none=True)
    linear = op.FusedLinear(x, pattern.Var(f"w{name}"), b, _domain=DOMAIN)
    if name != "q":
        return linear
    return pattern.OrValue([op.Mul(linear, pattern.Var("scale_q")), linear])


def heads(op: Any, projection: Any, name: str, length_first: bool = False) -> Any:
    """[B,S,h*d] -> [B,h,S,d], or for k [B,h,d,S] (clean-up merges Transposes)."""
    split = op.Reshape(projection, ANY, _outputs=[f"split_{name}"])
    return op.Transpose(split, perm=(SPLIT_K if name == "k" else SPLIT)[length_first])


def merged(op: Any, q: Any, k: Any, v: Any, length_first: bool = False) -> Any:
    """FusedSdpa, the heads side by side again, and the output projection."""
    context = op.FusedSdpa(q, k, v, pattern.Var("mask", can_match_none=True), _domain=DOMAIN, _outputs=["sdpa"])
    side_by_side = op.Reshape(op.Transpose(context, perm=MERGE[length_first]), ANY, _outputs=["merged"])
    return op.FusedLinear(side_by_side, pattern.Var("wo"), pattern.Var("bo", can_match_none=True), _domain=DOMAIN)


def swapped(op: Any, x: ir.Value) -> ir.Value:
    """[S,B,H] as [B,S,H]; what was swapped before is read as it was."""
    maker = x.producer()
    if maker is not None and maker.op_type == "Transpose" and maker.attributes.get_ints("perm", []) == tuple(SWAP):
        return maker.inputs[0]  # type: ignore[return-value]
    made = op.Transpose(x, perm=SWAP)
    made.shape, made.dtype = ir.Shape([x.shape[1], x.shape[0], x.shape[2]]), x.dtype  # type: ignore[index]
    return made


def swapped_back(op: Any, made: ir.Value, x: ir.Value, wo: ir.Value) -> ir.Value:
    """The result of an operator, which is batch first, in the layout of x [S,B,H]."""
    made.shape, made.dtype = ir.Shape([x.shape[1], x.shape[0], wo.const_value.shape[1]]), x.dtype  # type: ignore
    return op.Transpose(made, perm=SWAP)


def check_shapes(m: dict[str, Any], width: int) -> pattern.MatchResult:
    """The splits are [B,S,h,d] of `width` = h*d, the merge is [B,S,h*d], and nothing else happens in between."""
    result = pattern.MatchResult()
    sizes = set()
    for name in NAMES:
        split, source = m[f"split_{name}"], m["x"] if name == "q" else m.get("other", m["x"])
        if split.shape is None or len(split.shape) != 4 or not isinstance(split.shape[3], int):
            return result.fail("the size of a head is not known", split)
        if not _same_leading(split, source):
            return result.fail("the head split does not keep batch and length", split)
        sizes.add(split.shape[3])
    if len(sizes) != 1 or width % min(sizes):
        return result.fail("the heads of q, k and v are of different sizes", m["split_k"])
    count = width // min(sizes)
    if any(isinstance(m[f"split_{n}"].shape[2], int) and m[f"split_{n}"].shape[2] != count for n in NAMES):
        return result.fail("the heads do not make up the projection", m["split_q"])
    if not _same_leading(m["merged"], m["x"]) or len(m["merged"].shape) != 3:
        return result.fail("the heads are not merged into [batch, length, width]", m["merged"])
    if m["wo"].const_value.shape[0] != width:
        return result.fail("the output projection does not take all heads", m["wo"])
    if m.get("scale_q") is not None and constant_number(m["scale_q"]) is None:
        return result.fail("q is multiplied by something that is not a constant number", m["scale_q"])
    return result


def _same_leading(value: ir.Value, x: ir.Value) -> bool:
    """Whether both are known to have the same batch and length."""
    if value.shape is None or x.shape is None or len(x.shape) != 3 or len(value.shape) < 3:
        return False
    return all(same_dim(a, b) for a, b in zip(value.shape[:2], x.shape[:2], strict=True))


def check_separate(m: dict[str, Any]) -> pattern.MatchResult:
    """Three projections of one size, and their shapes."""
    shapes = {tuple(m[f"w{name}"].const_value.shape.numpy()) for name in NAMES}
    if len(shapes) != 1:
        return pattern.MatchResult().fail("q, k and v are of different sizes", m["wk"])
    return check_shapes(m, shapes.pop()[1])


def check_packed(m: dict[str, Any]) -> pattern.MatchResult:
    """One projection, cut along its last axis into three of one size, and their shapes."""
    result = pattern.MatchResult()
    parts = [m[f"part_{name}"] for name in NAMES]
    axis = parts[0].producer().attributes.get("axis")
    if axis is None or axis.as_int() not in (-1, 2) or any(p.shape is None or len(p.shape) != 3 for p in parts):
        return result.fail("the packed projection is not split along its last axis", parts[0])
    width = m["w"].const_value.shape[1]
    if width % 3 or any(part.shape[2] != width // 3 for part in parts):
        return result.fail("q, k and v are of different sizes", parts[0])
    return check_shapes(m, width // 3)


def scale_of(m: dict[str, Any]) -> float:
    factor = constant_number(m.get("scale_q"))
    return m["sdpa"].producer().attributes["scale"].as_float() * (1.0 if factor is None else factor)


class SelfAttention(pattern.RewriteRuleClassBase):
    """Three projections of one input."""

    def __init__(self, length_first: bool) -> None:
        super().__init__("attention" + ("_length_first" if length_first else ""))
        self.length_first = length_first

    def pattern(self, op, x):
        q, k, v = (heads(op, projected(op, x, name), name, self.length_first) for name in NAMES)
        return merged(op, q, k, v, self.length_first)

    def check(self, context, **m):
        return check_separate(m)

    def rewrite(self, op, **m):
        weight = op.initializer(packed_weight([m[f"w{name}"] for name in NAMES], axis=1))
        bias = packed_bias(op, m, NAMES)
        count = m["wq"].const_value.shape[1] // m["split_q"].shape[3]
        x = swapped(op, m["x"]) if self.length_first else m["x"]
        inputs = (x, m.get("mask"), weight, bias, m["wo"], m.get("bo"))
        made = op.FusedAttention(*inputs, num_heads=count, scale=scale_of(m), _domain=DOMAIN)
        return swapped_back(op, made, m["x"], m["wo"]) if self.length_first else made


class PackedAttention(pattern.RewriteRuleClassBase):
    """One projection that is split into q, k and v (GPT-2): the weight is packed already."""

    def pattern(self, op, x):
        linear = op.FusedLinear(x, pattern.Var("w"), pattern.Var("b", can_match_none=True), _domain=DOMAIN)
        parts = op.Split(linear, _allow_other_inputs=True, _outputs=[f"part_{name}" for name in NAMES])
        return merged(op, *(heads(op, part, name) for part, name in zip(parts, NAMES, strict=True)))

    def check(self, context, **m):
        return check_packed(m)

    def rewrite(self, op, **m):
        count = m["w"].const_value.shape[1] // 3 // m["split_q"].shape[3]
        inputs = (m["x"], m.get("mask"), m["w"], m.get("b"), m["wo"], m.get("bo"))
        return op.FusedAttention(*inputs, num_heads=count, scale=scale_of(m), _domain=DOMAIN)


def packed_bias(op: Any, m: dict[str, Any], names: tuple[str, ...]) -> ir.Value | None:
    """The biases side by side, zeros for a missing one; None where all are missing."""
    if all(m.get(f"b{name}") is None for name in names):
        return None
    return op.initializer(packed_weight([m.get(f"b{name}") or _zeros(m[f"w{name}"]) for name in names], axis=0))


def _zeros(w: ir.Value) -> ir.Value:
    tensor: Any = w.const_value
    return ir.Value(name="0", const_value=ir.tensor(np.zeros(tensor.shape[1], tensor.dtype.numpy())))


def packed_weight(values: list[Any], axis: int) -> ir.TensorProtocol:
    """Concatenated when it is read: the parts are held by the source already. The name says the parts and their order."""
    tensors = [v.const_value for v in values]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(t.shape[axis] for t in tensors)
    name = "+".join(str(v.name) for v in values)

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([t.numpy() for t in tensors], axis), name=name)

    return ir.LazyTensor(load, dtype=tensors[0].dtype, shape=ir.Shape(shape), name=name, cache=False)


RULES: list[pattern.RewriteRule] = [SelfAttention.rule(False), SelfAttention.rule(True), PackedAttention.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 2] x, float[B, S, 2] other, float[B, 1, 1, S] mask) => (float[B, S, 2] y)
<float[2, 2] wq = {{1, 2, -3, 4}}, float[2, 2] wk = {{2, 1, 5, -1}}, float[2, 2] wv = {{3, 1, 4, 1}},
 float[2, 2] wo = {{5, 9, 2, 6}},
 float[2] bq = {{1, 2}}, float[2] bv = {{3, 5}}, float[2] bo = {{8, 9}}, float[6] b = {{1, 2, 3, 4, 5, 6}},
 float[2, 6] w = {{1, 2, 3, 4, 5, 6, 6, -5, 4, -3, 2, -1}}, float f = {{0.3}},
 int64[4] heads = {{0, 0, 2, 1}}, int64[3] flat = {{0, 0, 2}}, int64[4] wrong = {{-1, 1, 2, 1}},
 float[B, S, 2] q, float[B, S, 2] k, float[B, S, 2] v, float[B, 2, S, 1] c>
{{
  {body}
  sq = Reshape(q, {heads})
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
_K, _V = "k = bertc.FusedLinear(x, wk)\n", "v = bertc.FusedLinear(x, wv, bv)"


def in_length_first(text: str) -> str:
    """The same attention of sequences whose first axis is their length."""
    text = text.replace("t = Transpose <perm = [0, 2, 1, 3]>", "t = Transpose <perm = [2, 0, 1, 3]>")
    for before, after in ((SPLIT[False], SPLIT[True]), (SPLIT_K[False], SPLIT_K[True])):
        text = text.replace(str(before), str(after))
    return re.sub(r"float\[(B|R), (S|T), (\d)\]", r"float[\2, \1, \3]", text)


EXAMPLES: list[str] = [
    _GRAPH.format(heads="heads", body="q = bertc.FusedLinear(x, wq, bq)\n" + _K + _V),
    _GRAPH.format(heads="heads", body="a = bertc.FusedLinear(x, wq, bq)\nq = Mul(a, f)\n" + _K + _V),
    _GRAPH.format(heads="heads", body="q = bertc.FusedLinear(x, wq)\n" + _K + "v = bertc.FusedLinear(x, wv)"),
    _GRAPH.format(heads="heads", body="a = bertc.FusedLinear(x, w, b)\nq, k, v = Split <axis = 2, num_outputs = 3> (a)"),
    in_length_first(_GRAPH.format(heads="heads", body="q = bertc.FusedLinear(x, wq, bq)\n" + _K + _V)),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(heads="heads", body="q = bertc.FusedLinear(other, wq, bq)\n" + _K + _V), "x bound to two different values"),
    (_GRAPH.format(heads="wrong", body="q = bertc.FusedLinear(x, wq, bq)\n" + _K + _V), "does not keep batch and length"),
]
