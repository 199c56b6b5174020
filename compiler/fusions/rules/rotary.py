"""rotary: rotary position embedding of one tensor of heads, as FusedRotary(x, cos, sin).

    x * cos + rotate_half(x) * sin,    rotate_half((a, b)) = (-b, a) of the two halves of a head        (Su et al. 2021)

x is [B,h,S,d]; cos and sin are [1|B,1,S,d], the same for all heads. The pairs are number i of the first half and number i of the
second, as GPT-NeoX, Llama, ModernBERT and ESM form them; pairs of neighbours (RoFormer's own) are another operation.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, constant_number, same_dim

OP = "FusedRotary"


class Rotary(pattern.RewriteRuleClassBase):
    """The sum with its terms in either order."""

    def __init__(self, swapped: bool) -> None:
        super().__init__("rotary" + ("_swapped" if swapped else ""))
        self.swapped = swapped

    def pattern(self, op, x, cos, sin):
        first = op.Slice(x, _allow_other_inputs=True, _outputs=["first"])
        second = op.Slice(x, _allow_other_inputs=True, _outputs=["second"])
        turned = op.Concat(op.Neg(second), first, axis=-1)
        still = pattern.OrValue([op.Mul(x, cos), op.Mul(cos, x)])
        moved = pattern.OrValue([op.Mul(turned, sin), op.Mul(sin, turned)])
        return op.Add(moved, still) if self.swapped else op.Add(still, moved)

    def check(self, context, x, cos, sin, first, second, **_):
        result = pattern.MatchResult()
        size = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
        if not isinstance(size, int):
            return result.fail("the input is not known to be [batch, heads, length, size]", x)
        if size % 2 or cut(first) != (3, 0, size // 2) or cut(second) != (3, size // 2, size):
            return result.fail("the heads are not cut in two halves", first)
        for value in (cos, sin):
            if value.shape is None or len(value.shape) != 4 or value.shape[1] != 1 or value.shape[3] != size:
                return result.fail("cos or sin is not known to be [1 or batch, 1, length, size]", value)
            if not same_dim(value.shape[2], x.shape[2]):
                return result.fail("cos or sin is not known to have one row per position", value)
        return result

    def rewrite(self, op, x, cos, sin, **_):
        return op.FusedRotary(x, cos, sin, _domain=DOMAIN)


def cut(part: ir.Value) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice along one axis in steps of 1, both counted from the front; None for another."""
    node = part.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Slice" else None
    if node is None or source is None or source.shape is None:
        return None
    start, end, axis, step = (constant_number(value) for value in (*node.inputs[1:], *[None] * (5 - len(node.inputs))))
    if start is None or end is None or axis is None or (step != 1 and len(node.inputs) > 4):
        return None
    at = int(axis) % len(source.shape)
    size = source.shape[at]
    if not isinstance(size, int):
        return None
    front, back = (min(int(n) + size if n < 0 else int(n), size) for n in (start, end))
    return at, front, back


RULES: list[pattern.RewriteRule] = [Rotary.rule(False), Rotary.rule(True)]

_GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, 2, S, 4] x, float[1, 1, S, 4] cos, float[1, 1, S, 4] sin, float[1, S, 4] flat) => (float[B, 2, S, 4] y)
<int64[1] zero = {{0}}, int64[1] middle = {{2}}, int64[1] wrong = {{1}}, int64[1] end = {{9223372036854775807}},
 int64[1] last = {{3}}, int64[1] one = {{1}}>
{{
  a = Slice(x, zero, {cut}, last, one)
  b = Slice(x, {cut}, end, last, one)
  n = Neg({negated})
  t = Concat <axis = -1> (n, {other})
  m = Mul(t, {sin})
  c = Mul(x, cos)
  y = Add({sum})
}}"""


def _text(cut: str = "middle", negated: str = "b", other: str = "a", sin: str = "sin", total: str = "c, m") -> str:
    return _GRAPH.format(cut=cut, negated=negated, other=other, sin=sin, sum=total)


EXAMPLES: list[str] = [_text(), _text(total="m, c")]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(cut="wrong"), "the heads are not cut in two halves"),
    (_text(negated="a", other="b"), "the heads are not cut in two halves"),
    (_text(sin="flat"), "cos or sin is not known to be [1 or batch, 1, length, size]"),
]
