"""linear: a product with a constant matrix, with or without its bias, as FusedLinear(x [...,K], W [K,N], b [N]) = x @ W + b.

Gemm is alpha * A' @ B' + beta * C: alpha and the transposition of B go into the weight and beta into the bias, when they are
read (LazyTensor); a transposed A stays a Transpose in front. Exporters flatten [B,S,K] to [B*S,K] around a Gemm (torch's addmm,
so GPT-2's Conv1D): the two Reshapes go where they undo each other. multi_head_attention_forward flattens [S,B*h,d], whose heads
are folded into the batch, and gets [S,B,N]: one Reshape to [S,B,K] is left.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, lazy_transpose, same_dim

OP = "FusedLinear"


def is_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a constant [K,N]."""
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def _is_row(b: ir.Value, width: int) -> bool:
    """Whether a constant is [N], or [1,...,1,N], so that adding it adds one number a column."""
    if b.const_value is None or not len(b.const_value.shape):
        return False
    shape = b.const_value.shape.numpy()
    return shape[-1] == width and b.const_value.size == width


def _maybe_transposed(op: Any, w: Any) -> Any:
    return pattern.OrValue([op.Transpose(w, perm=[1, 0]), w], tag_var="swap", tag_values=[True, False])


class WithBias(pattern.RewriteRuleClassBase):
    """x @ W + b."""

    def pattern(self, op, x, w, b):
        return op.Add(op.MatMul(x, _maybe_transposed(op, w)), b)

    def check(self, context, x, w, b, swap, **_):
        result = pattern.MatchResult()
        if not is_matrix(w):
            return result.fail("the weight is not a constant matrix", w)
        if b.const_value is None:
            return result.fail("the bias is not constant", b)
        if not _is_row(b, w.const_value.shape[0 if swap else 1]) or x.shape is None or len(b.const_value.shape) > len(x.shape):
            return result.fail("the bias is not one number per column", b)
        return result

    def rewrite(self, op, x, w, b, swap, **_):
        return op.FusedLinear(x, _weight(op, w, swap, 1.0), _bias(op, b, 1.0), _domain=DOMAIN)


class Plain(pattern.RewriteRuleClassBase):
    """x @ W."""

    def pattern(self, op, x, w):
        return op.MatMul(x, _maybe_transposed(op, w))

    def check(self, context, w, **_):
        result = pattern.MatchResult()
        return result if is_matrix(w) else result.fail("the weight is not a constant matrix", w)

    def rewrite(self, op, x, w, swap, **_):
        return op.FusedLinear(x, _weight(op, w, swap, 1.0), _domain=DOMAIN)


class Gemm(pattern.RewriteRuleClassBase):
    """Gemm, alone or between the two Reshapes that flatten and restore its leading dims."""

    def __init__(self, flattened: bool) -> None:
        super().__init__("linear_gemm" + ("_flattened" if flattened else ""))
        self.flattened = flattened

    def pattern(self, op, x, w):
        b = pattern.Var("b", can_match_none=True)
        if not self.flattened:
            return op.Gemm(x, w, b, _outputs=["gemm"])
        flat = op.Reshape(x, pattern.ANY_VALUE, _outputs=["flat"])
        return op.Reshape(op.Gemm(flat, w, b, _outputs=["gemm"]), pattern.ANY_VALUE, _outputs=["out"])

    def check(self, context, x, w, gemm, b=None, flat=None, out=None, **_):
        result = pattern.MatchResult()
        if not is_matrix(w):
            return result.fail("the weight is not a constant matrix", w)
        rows, columns = w.const_value.shape
        if _attribute(gemm, "transB", 0):
            rows, columns = columns, rows
        if b is not None and b.const_value is None:
            return result.fail("the bias is not constant", b)
        if b is not None and not _is_row(b, columns):
            return result.fail("the bias is not one number per column", b)
        if not self.flattened:
            return result
        if _attribute(gemm, "transA", 0):
            return result.fail("the flattened input is transposed", gemm)
        if any(v.shape is None for v in (x, flat, out)) or len(flat.shape) != 2 or not same_dim(flat.shape[1], rows):
            return result.fail("the shapes around the product are not known", flat)
        if not same_dim(out.shape[-1], columns) or _sizes(x, out, rows) is None:
            return result.fail("the reshapes around the product do not undo each other", out)
        return result

    def rewrite(self, op, x, w, gemm, b=None, flat=None, out=None, **_):
        if _attribute(gemm, "transA", 0):
            x = op.Transpose(x, perm=[1, 0])
        if self.flattened and (sizes := _sizes(x, out, flat.shape[1])):
            dtype = x.dtype
            x = op.Reshape(x, op.Constant(value_ints=sizes))
            x.shape, x.dtype = ir.Shape([*out.shape[:-1], flat.shape[1]]), dtype
        weight = _weight(op, w, bool(_attribute(gemm, "transB", 0)), float(_attribute(gemm, "alpha", 1.0)))
        bias = None if b is None else _bias(op, b, float(_attribute(gemm, "beta", 1.0)))
        return op.FusedLinear(x, weight, bias, _domain=DOMAIN)


def _sizes(x: ir.Value, out: ir.Value, width: int) -> list[int] | None:
    """What x is reshaped to for a product that has the leading dims of out: [] where it has them, None where it is not known."""
    leading = len(out.shape) - 1  # type: ignore[arg-type]
    if len(x.shape) < leading + 1:  # type: ignore[arg-type]
        return None
    if all(same_dim(a, b) for a, b in zip(x.shape[:leading], out.shape[:leading], strict=True)):  # type: ignore[index]
        rest = x.shape[leading:]  # type: ignore[index]
        return [] if len(rest) == 1 else [0] * leading + [width] if all(isinstance(d, int) for d in rest) else None
    if len(x.shape) != 3 or leading != 2 or not same_dim(x.shape[0], out.shape[0]):  # type: ignore
        return None
    size = x.shape[2]  # type: ignore[index]
    return [0, -1, width] if isinstance(size, int) and size and width % size == 0 else None


def _attribute(value: ir.Value, name: str, default: float) -> float:
    found = value.producer().attributes.get(name)
    return default if found is None else found.value


def _weight(op: Any, w: ir.Value, swap: bool, factor: float) -> ir.Value:
    if not swap and factor == 1.0:
        return w
    tensor = lazy_transpose(w) if swap else w.const_value
    return op.initializer(tensor if factor == 1.0 else _scaled(tensor, factor, str(tensor.name), tensor.shape.numpy()))  # type: ignore


def _bias(op: Any, b: ir.Value, factor: float) -> ir.Value:
    """b as [N] times a factor; itself where it is that already."""
    if factor == 1.0 and len(b.const_value.shape) == 1:
        return b
    return op.initializer(_scaled(b.const_value, factor, str(b.name), (b.const_value.size,)))


def _scaled(tensor: Any, factor: float, name: str, shape: Any) -> ir.TensorProtocol:
    """A tensor times a number, in another shape, when it is read. The name says both: equal names hold equal numbers."""
    name = f"{name}.times_{factor:g}.{'x'.join(map(str, shape))}"

    def load() -> ir.TensorProtocol:
        array = tensor.numpy().reshape(shape)
        return ir.tensor(array if factor == 1.0 else (array * factor).astype(array.dtype), name=name)

    return ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape(shape), name=name)


RULES: list[pattern.RewriteRule] = [Gemm.rule(True), Gemm.rule(False), *WithBias.rule().commute(), Plain.rule()]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, S, 2] x, float[2, M] xt, float[B, S, 3] r) => (y)
<float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float[3, 2] wt = {{1, 2, 3, 4, 5, 6}},
 float[3] b = {{1, 2, 3}}, float[1, 3] row = {{1, 2, 3}},
 float[1] one = {{1}}, int64[2] flat = {{-1, 2}}, int64[3] back = {{-1, 5, 3}}, int64[1] last = {{-1}}, int64[1] three = {{3}}>
{{
  {body}
}}"""
_FLAT = (
    "f = Reshape(x, flat)\ngm = Gemm <transB = 1, alpha = 0.5> (f, wt, b)\ns = Shape <end = 2> (x)\n"
    "t = Concat <axis = 0> (s, three)\ny = Reshape(gm, t)"
)
EXAMPLES: list[str] = [
    _GRAPH.format(body="y = MatMul(x, w)"),
    _GRAPH.format(body="m = MatMul(x, w)\ny = Add(m, b)"),
    _GRAPH.format(body="m = MatMul(x, w)\ny = Add(row, m)"),
    _GRAPH.format(body="t = Transpose <perm = [1, 0]> (wt)\nm = MatMul(x, t)\ny = Add(b, m)"),
    _GRAPH.format(body="y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (xt, wt, row)"),
    _GRAPH.format(body=_FLAT),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body="m = MatMul(x, w)\ny = Add(m, r)"), "the bias is not constant"),
    (_GRAPH.format(body="m = MatMul(x, w)\ny = Add(m, one)"), "the bias is not one number per column"),
    (_GRAPH.format(body="f = Reshape(x, flat)\ngm = Gemm(f, w, b)\ny = Reshape(gm, back)"), "do not undo each other"),
]
