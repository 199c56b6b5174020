"""flat_attention: scaled dot-product attention over three dimensions, as FusedSdpa over four.

torch's multi_head_attention_forward runs length first and folds the heads into the batch: its products are over [B*h,S,d], and so
were BART's. Attention of one head, written by hand, has no dimension of heads at all. What is added to the scores, [B*h,S,T], is
unfolded to [B,h,S,T] and may be anything: WavLM adds relative positions, gated by what the layer reads (Chen et al. 2022, section
III-A). The scores are spelled as in `sdpa`; `attention` and `cross_attention` take the projections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, same_dim
from .attention import ANY, MERGE, SPLIT, SPLIT_K, SWAP
from .sdpa import Sdpa, operands

OP = "FusedSdpa"
# What becomes of the product with the values: heads that were folded are set side by side, one head is only turned, heads of a
# reshaped [B,h,S,d] are reshaped back, and one head written by hand stays as it is.
TAILS = ("folded", "turned", "reshaped", "")


class FlatSdpa(Sdpa):
    """`sdpa` with q [N,S,d], k_t [N,d,T] and v [N,T,d]."""

    RANK, SHAPE = 3, "[batch * heads, length, size]"

    def __init__(self, on_operands: bool, tail: str) -> None:
        super().__init__(on_operands)
        self.tail = tail

    def pattern(self, op, q, k_t, v, s_q, s_k, s, mask, bias, keep, low, zero):
        mixed = super().pattern(op, q, k_t, v, s_q, s_k, s, mask, bias, keep, low, zero)
        if self.tail == "reshaped":
            return op.Reshape(mixed, ANY, _outputs=["out"])
        turned = op.Transpose(mixed, perm=SWAP) if self.tail else mixed
        return op.Reshape(turned, ANY, _outputs=["out"]) if self.tail == "folded" else turned

    def check(self, context, q, k_t, v, p, s=None, zero=None, mask=None, low=None, **rest):
        result = super().check(context, q, k_t, v, p, s, zero, mask, low, **rest)
        if not result:
            return result
        added = [value for value in (mask, rest.get("bias"), rest.get("keep")) if value is not None]
        if any(value.shape is None for value in added):
            return result.fail("the shape of what is added to the scores is not known", added[0])
        if self.on_operands:
            q, k_t, _ = operands(q, k_t, rest)
        if not self.tail:
            known = isinstance(q.shape[2], int) and isinstance(v.shape[2], int)
            return result if known else result.fail("the size of the head is not known", q)
        heads = self._parts(q, k_t, v)
        if isinstance(heads, str):
            return result.fail(heads, q)
        if self.tail != "turned" and not self._merges(heads[0], rest["out"]):
            return result.fail("the heads are not unfolded as q's were", rest["out"])
        return result

    def _parts(self, q: ir.Value, k_t: ir.Value, v: ir.Value) -> list[tuple[ir.Value, int]] | str:
        """For each operand what its heads are split off, and how many there are; or why that is not known."""
        found = []
        for value, perm in ((q, SWAP), (k_t, [1, 2, 0]), (v, SWAP)):
            turned_back = turned(value, [0, 2, 1]) if value is k_t else None
            part = _reshaped(turned_back or value) if self.tail == "reshaped" else _folded(value, perm, self.tail == "folded")
            if part is None:
                return f"the heads of {value.name} are not known to be folded into the batch"
            found.append(part)
        batch = 0 if self.tail == "reshaped" else 1
        same = all(heads == found[0][1] and same_dim(y.shape[batch], found[0][0].shape[batch]) for y, heads in found)  # type: ignore
        return found if same else "q, k and v have other heads or batches"

    def _merges(self, part: tuple[ir.Value, int], out: ir.Value) -> bool:
        """Whether the result is reshaped to what q was before its heads were folded (of another width, perhaps)."""
        y, _ = part
        if out.shape is None or y.shape is None or len(out.shape) != len(y.shape):
            return False
        return all(same_dim(a, b) for a, b in zip(out.shape[:-1], y.shape[:-1], strict=True))

    def attended(self, op, operands, mask, terms, scale):
        parts: Any = self._parts(*operands) if self.tail else [(y, 1) for y in operands]
        heads, rank = parts[0][1], max((len(value.shape) for value in terms), default=0)
        batch = parts[0][0].shape[1 if self.tail in ("folded", "turned") else 0]
        if rank == 3:
            mask = _unfolded(op, mask, next(value for value in terms if len(value.shape) == 3).shape, batch, heads)
        if self.tail == "reshaped":
            k: Any = parts[1][0] if turned(operands[1], [0, 2, 1]) is None else op.Transpose(parts[1][0], perm=[0, 1, 3, 2])
            return op.FusedSdpa(parts[0][0], k, parts[2][0], mask, scale=scale, _domain=DOMAIN)
        first = bool(self.tail)
        key = parts[1][0] if first else turned(operands[1], [0, 2, 1])
        known = key is not None and key.shape is not None and isinstance(key.shape[2], int)
        k = _split(op, key, heads, SPLIT_K[first]) if known else op.Unsqueeze(operands[1], _ints(op, [1]))
        q, v = (_split(op, parts[i][0], heads, SPLIT[first]) for i in (0, 2))
        context = op.FusedSdpa(q, k, v, mask, scale=scale, _domain=DOMAIN)
        context.shape, context.dtype = ir.Shape([*q.shape[:3], v.shape[3]]), q.dtype
        merged = op.Transpose(context, perm=MERGE[first])
        merged.shape, merged.dtype = ir.Shape([context.shape[i] for i in MERGE[first]]), q.dtype
        return op.Reshape(merged, _ints(op, [0, 0, heads * v.shape[3]]))


def turned(value: ir.Value, perm: list[int]) -> ir.Value | None:
    """What a value is the Transpose of, by that permutation."""
    node = value.producer()
    if node is None or node.op_type != "Transpose" or list(node.attributes.get_ints("perm", [])) != perm:
        return None
    return node.inputs[0]


def _folded(value: ir.Value, perm: list[int], split: bool) -> tuple[ir.Value, int] | None:
    """(y [S,B,h*d], h) of [B*h,S,d], or of k's [B*h,d,S]; without `split` it is one head."""
    flat = turned(value, perm)
    if flat is None or not split:
        known = flat is not None and flat.shape is not None and len(flat.shape) == 3 and isinstance(flat.shape[2], int)
        return (flat, 1) if known else None  # type: ignore[return-value]
    node = flat.producer()
    y = node.inputs[0] if node is not None and node.op_type == "Reshape" else None
    if y is None or y.shape is None or flat.shape is None or len(y.shape) != 3 or len(flat.shape) != 3:
        return None
    width, size = y.shape[2], flat.shape[2]
    if not (isinstance(width, int) and isinstance(size, int) and size and same_dim(y.shape[0], flat.shape[0])):
        return None
    return None if width % size else (y, width // size)


def _reshaped(value: ir.Value) -> tuple[ir.Value, int] | None:
    """(y [B,h,S,d], h) of its reshape to [B*h,S,d]."""
    node = value.producer()
    y = node.inputs[0] if node is not None and node.op_type == "Reshape" else None
    if y is None or y.shape is None or value.shape is None or len(y.shape) != 4 or not isinstance(y.shape[1], int):
        return None
    return (y, y.shape[1]) if all(same_dim(a, b) for a, b in zip(y.shape[2:], value.shape[1:], strict=True)) else None


def _split(op: Any, y: ir.Value, heads: int, perm: list[int]) -> ir.Value:
    """[.,.,h*d] with its heads apart, turned."""
    size = y.shape[2] // heads  # type: ignore
    split = op.Reshape(y, _ints(op, [0, 0, heads, size]))
    split.shape, split.dtype = ir.Shape([*y.shape[:2], heads, size]), y.dtype  # type: ignore[index]
    made = op.Transpose(split, perm=perm)
    made.shape, made.dtype = ir.Shape([split.shape[i] for i in perm]), y.dtype
    return made


def _unfolded(op: Any, added: ir.Value, shape: ir.Shape, batch: Any, heads: int) -> ir.Value:
    """What is added to the scores [B*h,S,T], as [B,h,S,T]: of one head, or the same for all of them, a new axis is enough."""
    if heads == 1 or shape[0] == 1:
        made = op.Unsqueeze(added, _ints(op, [1]))
        made.shape, made.dtype = ir.Shape([shape[0], 1, *shape[1:]]), ir.DataType.FLOAT
        return made
    squares = op.Shape(added, start=1)
    squares.shape, squares.dtype = ir.Shape([2]), ir.DataType.INT64
    wanted = op.Concat(_ints(op, [-1, heads]), squares, axis=0)
    wanted.shape, wanted.dtype = ir.Shape([4]), ir.DataType.INT64
    made = op.Reshape(added, wanted)
    made.shape, made.dtype = ir.Shape([batch, heads, *shape[1:]]), ir.DataType.FLOAT
    return made


def _ints(op: Any, numbers: list[int]) -> ir.Value:
    name = f"sizes.{'_'.join(map(str, numbers))}"
    return op.initializer(ir.tensor(np.array(numbers, np.int64), name=name), name=name)


RULES: list[pattern.RewriteRule] = [FlatSdpa.rule(on_operands, tail) for tail in TAILS for on_operands in (True, False)]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[S, B, 4] q, float[T, B, 4] k, float[T, B, 4] v, float[B, 2, S, T] bias, float[B, S, 2] one_q, float[B, T, 2] one_k,
   float[B, T, 2] one_v, float[B, S, T] one_bias, float[B, 2, S, 2] deep, float[B, 2, T, 2] deep_k) => (y)
<float f = {{0.5}}, int64[1] h = {{2}}, int64[1] four = {{4}}, int64[1] less = {{-1}}>
{{
  ls = Shape <end = 1> (q)
  lt = Shape <end = 1> (k)
  bs = Shape <start = 1, end = 2> (q)
  bh = Mul(bs, h)
  squares = Concat <axis = 0> (bh, ls, lt)
  added = Reshape(bias, squares)
  fold = Concat <axis = 0> (ls, bh, h)
  fold_t = Concat <axis = 0> (lt, bh, h)
  rows = Concat <axis = 0> (bh, ls, h)
  rows_t = Concat <axis = 0> (bh, lt, h)
  back = Concat <axis = 0> (ls, bs, four)
  deep_back = Concat <axis = 0> (bs, h, ls, h)
  {body}
}}"""
_FOLDED = """sq = Reshape(q, fold)
  tq = Transpose <perm = [1, 0, 2]> (sq)
  mq = Mul(tq, f)
  sk = Reshape(k, fold_t)
  kt = Transpose <perm = [1, 2, 0]> (sk)
  sv = Reshape(v, fold_t)
  tv = Transpose <perm = [1, 0, 2]> (sv)
  a = MatMul(mq, kt)
  scores = {total}
  p = Softmax <axis = -1> (scores)
  c = MatMul(p, tv)
  tc = Transpose <perm = [1, 0, 2]> (c)
  y = Reshape(tc, back)"""
_ONE = """kt = Transpose <perm = [0, 2, 1]> (one_k)
  a = MatMul(one_q, kt)
  b = Mul(a, f)
  scores = Add(b, one_bias)
  p = Softmax <axis = -1> (scores)
  y = MatMul(p, one_v)"""
_TURNED = """t = Transpose <perm = [1, 0, 2]> (q)
  tk = Transpose <perm = [1, 2, 0]> (k)
  tv = Transpose <perm = [1, 0, 2]> (v)
  a = MatMul(t, tk)
  p = Softmax <axis = -1> (a)
  c = MatMul(p, tv)
  y = Transpose <perm = [1, 0, 2]> (c)"""
_DEEP = """rq = Reshape(deep, rows)
  rk = Reshape(deep_k, rows_t)
  kt = Transpose <perm = [0, 2, 1]> (rk)
  a = MatMul(rq, kt)
  s = Add(a, added)
  p = Softmax <axis = {axis}> (s)
  c = MatMul(p, rk)
  y = Reshape(c, deep_back)"""


def _text(total: str = "Add(a, added)") -> str:
    return _GRAPH.format(body=_FOLDED.format(total=total))


EXAMPLES: list[str] = [
    _text(),
    _text("Add(added, a)"),
    _text("Identity(a)"),
    *(_GRAPH.format(body=body) for body in (_ONE, _TURNED, _DEEP.format(axis=-1))),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body=_DEEP.format(axis=1)), "the softmax is not over the last axis"),
    (_text("Add(a, bias)"), "the mask is not known to broadcast"),
]
