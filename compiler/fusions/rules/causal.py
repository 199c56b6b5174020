"""causal: the score mask of a decoder, however it is made, as one bertc.FusedCausalMask(attention_mask, queries; low) [B,1,S,T].

    score[b,0,s,t] = 0 where attention_mask[b,t] is not 0 and t <= s + T - S, else low        (Vaswani et al. 2017, section 3.2.3)

What ends in Where(keep, 0, low) of rank 4 is taken, with all that makes it, and the proof says whether it is such a mask: it is
run with masks of every kind at several lengths. Of one query (the step of a decoder) it is a FusedScoreMask. Runs behind `mask`,
which takes the masks without order. The places are the value of rank 2 nearest to the graph's inputs that is as long as the
keys: an input, or one that was lengthened by the new tokens. The proof's lengths reach beyond SEEN; a larger constant on the way
could be a window that none of them shows, and is a reason to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, MASK_LOW, constant_number, same_dim

OP = "FusedCausalMask"
SEEN = 5
FUSED = frozenset({"FusedSdpa", "FusedAttention", "FusedPastAttention", "FusedCrossAttention", "Add"})


class Causal(pattern.RewriteRuleClassBase):
    """Where(keep, 0, low), or with its branches exchanged."""

    def __init__(self, low_first: bool) -> None:
        super().__init__("causal" + ("_low_first" if low_first else ""))
        self.low_first = low_first

    def pattern(self, op, keep, zero, low):
        return op.Where(keep, *((low, zero) if self.low_first else (zero, low)), _outputs=["out"])

    def check(self, context, zero, low, out, **_):
        result = pattern.MatchResult()
        if constant_number(zero) != 0.0:
            return result.fail("kept scores get something other than 0", zero)
        if constant_number(low) is None or constant_number(low) > -1e4:
            return result.fail("masked scores do not get a large negative number", low)
        if out.shape is None or len(out.shape) != 4 or out.shape[1] != 1:
            return result.fail("the mask is not known to be [batch, 1, queries, keys]", out)
        if not any(use.node.op_type in FUSED for use in out.uses()):
            return result.fail("no attention scores read the mask", out)
        places, window, square = _places(out), _window(out), same_dim(out.shape[2], out.shape[3])
        if window is not None:
            return result.fail(f"it compares with {window:g}: maybe a sliding window, longer than any length that is tried", out)
        if places is None and not (square and out.shape[0] == 1):
            return result.fail("no mask [batch, keys] makes it, and it is not [1, 1, length, length]", out)
        if (places is None or not (square or out.shape[2] == 1)) and _measured(out) is None:
            return result.fail("no value on its way has as many positions as there are queries", out)
        return result

    def rewrite(self, op, out, low, **_):
        lowest = MASK_LOW if constant_number(low) == -math.inf else constant_number(low)
        places = _places(out)
        if places is not None and out.shape[2] == 1:
            return op.FusedScoreMask(places, low=lowest, _domain=DOMAIN)
        queries = None
        if places is None or not same_dim(out.shape[2], out.shape[3]):
            value, axis = _measured(out)
            queries = op.Shape(value, start=axis, end=axis + 1)
            queries.shape, queries.dtype = ir.Shape([1]), ir.DataType.INT64
        return op.FusedCausalMask(places, queries, low=lowest, _domain=DOMAIN)


def _above(value: ir.Value, stop: ir.Value | None = None) -> Iterator[ir.Value]:
    """Every value that a value is made of, nearest first, not looking through Shape nor past `stop`; inputs included."""
    todo, seen = [value], set[ir.Value]()
    while todo:
        node = todo.pop(0).producer()
        for each in node.inputs if node is not None and node.op_type != "Shape" else ():
            if each is None or each in seen or each.const_value is not None:
                continue
            seen.add(each)
            yield each
            if each is not stop:
                todo.append(each)


def _places(out: ir.Value) -> ir.Value | None:
    """The one value [batch, keys] through which all numbers of the graph's inputs come; None where there is none."""
    found = [v for v in _above(out) if v.shape is not None and len(v.shape) == 2 and v.dtype is not None]
    fitting = [v for v in found if same_dim(v.shape[1], out.shape[3]) and same_dim(v.shape[0], out.shape[0])]  # type: ignore[index]
    fed = [v for v in fitting if v.is_graph_input() or any(a.is_graph_input() for a in _above(v))]
    for value in reversed(fed):
        if not any(each.is_graph_input() for each in _above(out, stop=value) if each is not value):
            return value
    return None


def _measured(out: ir.Value) -> tuple[ir.Value, int] | None:
    """(value, axis) that a Shape on the way reads and that has as many places as there are queries."""
    for value in _above(out):
        node = value.producer()
        read = node.inputs[0] if node is not None and node.op_type == "Shape" else None
        for axis, dim in enumerate(read.shape or () if read is not None else ()):
            if same_dim(dim, out.shape[2]):  # type: ignore[index]
                return read, axis  # type: ignore[return-value]
    return None


def _window(out: ir.Value) -> float | None:
    """A constant on the way that no length of the proof reaches."""
    for value in (out, *_above(out)):
        node = value.producer()
        for each in node.inputs if node is not None else ():
            tensor = each.const_value if each is not None else None
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            numbers = np.abs(tensor.numpy().astype(np.float64).reshape(-1))
            large = numbers[(numbers > SEEN) & (numbers < 1e4)]
            if large.size:
                return float(large[0])
    return None


RULES: list[pattern.RewriteRule] = [Causal.rule(False), Causal.rule(True)]

_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
example (int64[B, T] attention_mask, int64[B, S] ids, float[B, 2, S, T] scores, float[B, 2, T, T] square)
 => (float[B, 2, {S}, T] y)
<float low = {{-10000.0}}, float zero = {{0.0}}, int64[2] axes = {{1, 2}}, int64[2] ones = {{0, 1}}, int64[1] axis = {{1}},
 int64[1] first = {{0}}, int64 start = {{0}}, int64 step = {{1}}, int64 window = {{{window}}}, float[{B}, 1, {S}, T] m> {{
u = Unsqueeze(attention_mask, axes)
c = Cast <to = 9> (u)
n = Shape <start = 1> (attention_mask)
t = Squeeze(n)
k = Range(start, t, step)
{body}
a = Add({scores}, m)
y = Softmax <axis = -1> (a)
}}
"""
_ROWS = "l = Shape <start = 1> (ids)\no = Squeeze(l)\nf = Sub(t, o)\nr = Range(f, t, step)\nq = Unsqueeze(r, axis)\n"
_ORDER = "e = LessOrEqual(k, q)\nx = Unsqueeze(e, ones)\nb = And(c, x)\n"
_END = "m = Where(b, zero, low)"


def _text(body: str, scores: str = "square", window: int = 2, batch: str = "B") -> str:
    return _GRAPH.format(body=body, scores=scores, window=window, B=batch, S="T" if scores == "square" else "S")


EXAMPLES: list[str] = [
    _text("q = Unsqueeze(k, axis)\n" + _ORDER + _END),
    _text("q = Unsqueeze(k, axis)\n" + _ORDER + "d = Not(b)\nm = Where(d, low, zero)"),
    _text(_ROWS + _ORDER + _END, "scores"),
    _text("q = Unsqueeze(k, axis)\ne = LessOrEqual(k, q)\nb = Unsqueeze(e, ones)\n" + _END, batch="1"),
]
_NEAR = "q = Unsqueeze(k, axis)\nh = Sub(q, k)\ng = Less(h, window)\nv = Unsqueeze(g, ones)\nw = And(v, c)\n"
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_NEAR + _ORDER.replace("(c, x)", "(w, x)") + _END), "not proven"),
    (_text(_NEAR + _ORDER.replace("(c, x)", "(w, x)") + _END, window=128), "maybe a sliding window"),
    (_text("q = Unsqueeze(k, axis)\n" + _ORDER.replace("LessOrEqual", "GreaterOrEqual") + _END), "not proven"),
]
