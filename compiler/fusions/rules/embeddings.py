"""embeddings: lookups of word, position and token type, summed and normalised, as bertc.FusedEmbeddings.

y = LayerNormalization(word[ids] + position[positions] + type[types]) (Devlin et al. 2019, section 3), the sum in any order and
association, each lookup but the first may be absent. Positions are an input of the node, however they were made: a constant range
cut to the length, the running sum of a mask (RoBERTa), or a graph input. A projection behind it (ELECTRA, ALBERT) is a
FusedLinear.

The sum is the same whichever lookup is called which; the roles decide what shape an index must have, and names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN

OP = "FusedEmbeddings"
# Associations: how a, b, c (lookups) are added before the normalisation.
FORMS = ("ab+c", "c+ab", "ab", "a")
PASSES_ON = frozenset({"Cast", "Identity"})


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Gather(table, index)."""

    table: ir.Value
    index: ir.Value

    @property
    def rows(self) -> int:
        return int(self.table.shape[0])

    @property
    def source(self) -> ir.Value | None:
        """The graph input that the index is, perhaps cast; else None."""
        value = self.index
        while (node := value.producer()) is not None and node.op_type in PASSES_ON:
            value = node.inputs[0]
        return value if value.is_graph_input() else None

    @property
    def is_position(self) -> bool:
        source = self.source
        named = source is not None and "position" in str(source.name)
        return named or source is None or len(self.index.shape or ()) == 1 or self.index.shape[0] == 1


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which lookup is which."""

    word: Lookup
    position: Lookup | None
    type: Lookup | None


class Embeddings(pattern.RewriteRuleClassBase):
    """One association of one, two or three lookups."""

    def __init__(self, form: str) -> None:
        super().__init__(f"embeddings_{form}")
        self.form = form

    def pattern(self, op, ta, ia, tb, ib, tc, ic, gamma):
        def lookup(table: Any, index: Any, name: str) -> Any:
            return op.Gather(table, index, _outputs=[name])

        total = lookup(ta, ia, "a")
        if "b" in self.form:
            total = op.Add(total, lookup(tb, ib, "b"))
        if self.form == "ab+c":
            total = op.Add(total, lookup(tc, ic, "c"))
        elif self.form == "c+ab":
            total = op.Add(lookup(tc, ic, "c"), total)
        return op.LayerNormalization(total, gamma, pattern.Var("beta", can_match_none=True), _outputs=["y"])

    def check(self, context, gamma, y, **found):
        result = pattern.MatchResult()
        for name in ("a", "b", "c"):
            if found.get(name) is not None and (fault := _fault(found[name])):
                return result.fail(fault, found[name])
        if y.shape is None or len(y.shape) != 3:
            return result.fail("the sum is not known to be [batch, length, width]", y)
        axis = y.producer().attributes.get("axis")
        if axis is not None and axis.as_int() not in (-1, 2):
            return result.fail("the normalisation is not over the last axis", y)
        fault = _misfit(_lookups(found))
        return result.fail(fault, y) if fault else result

    def rewrite(self, op, gamma, y, beta=None, **found):
        roles = _roles(_lookups(found))
        positions = roles.position.index if roles.position else None
        if positions is not None and len(positions.shape or ()) == 1:
            row: Any = positions
            positions = op.Unsqueeze(row, op.initializer(ir.tensor([0], dtype=ir.DataType.INT64, name=f"{y.name}.axis")))
            positions.shape, positions.dtype = ir.Shape([1, row.shape[0]]), row.dtype
        types = roles.type.index if roles.type else None
        tables = [each.table if each else None for each in (roles.word, roles.position, roles.type)]
        if beta is None:
            zeros = np.zeros(gamma.shape[0], gamma.dtype.numpy())
            beta = op.initializer(ir.tensor(zeros, dtype=gamma.dtype, name=f"{y.name}.zeros"))
        attribute = y.producer().attributes.get("epsilon")
        epsilon = 1e-5 if attribute is None else attribute.as_float()
        return op.FusedEmbeddings(roles.word.index, positions, types, *tables, gamma, beta, epsilon=epsilon, _domain=DOMAIN)


def _fault(looked_up: ir.Value) -> str:
    """Why a Gather is no embedding lookup, or ''."""
    node = looked_up.producer()
    assert node is not None
    table, index = node.inputs[:2]
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() != 0:
        return "a lookup does not gather rows"
    if table is None or table.const_value is None or len(table.const_value.shape) != 2:
        return "a table is not a constant matrix"
    if index is None or index.shape is None or len(index.shape) not in (1, 2):
        return "an index is not known to be [batch, length] or [length]"
    return ""


def _lookups(found: dict[str, Any]) -> list[Lookup]:
    nodes = [found[name].producer() for name in ("a", "b", "c") if found.get(name) is not None]
    return [Lookup(*node.inputs[:2]) for node in nodes]


def _misfit(lookups: Sequence[Lookup]) -> str:
    """Why the lookups do not fit the signature, or ''."""
    roles = _roles(lookups)
    for each, what in ((roles.word, "word"), (roles.type, "token type")):
        if each is None:
            continue
        if len(each.index.shape or ()) != 2:
            return f"the {what} index is not [batch, length]"
        if len(lookups) > 1 and each.index.shape[0] == 1 and roles.position is not None:
            return f"the {what} index is the same for the whole batch"
    return ""


def _roles(lookups: Sequence[Lookup]) -> Roles:
    """Words have the largest table among those looked up by a graph input; positions are the first that are computed.

    Without any position by these signs, the second largest table is taken for it where three are looked up.
    """
    by_size = sorted(lookups, key=lambda each: -each.rows)
    words = [each for each in by_size if not each.is_position] or by_size
    word = words[0]
    rest = [each for each in by_size if each is not word]
    computed = [each for each in rest if each.is_position]
    position = computed[0] if computed else rest[0] if len(rest) == 2 else None
    types = [each for each in rest if each is not position]
    return Roles(word, position, types[0] if types else None)


RULES: list[pattern.RewriteRule] = [Embeddings.rule(form) for form in FORMS]

_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
example (int64[B, S] ids, int64[B, S] types, int64[B, S] position_ids, int64[S] row, float[B, S, 2] given) => (float[B, S, 2] y)
<float[5, 2] word = {{0.0, 1.0, 2.0, 3.0, 4.0, -5.0, 6.0, 7.0, 0.5, 1.5}},
 float[4, 2] position = {{0.1, 0.7, -0.3, 0.4, 0.5, 0.2, 0.9, 0.8}},
 float[2, 2] type = {{1.0, -1.0, 0.5, 2.0}}, float[2] g = {{1.0, 0.5}}, float[2] b = {{0.1, 0.2}},
 int64[1, 4] range = {{0, 1, 2, 3}},
 int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 axis = {{1}}> {{
w = Gather(word, ids)
{body}
y = LayerNormalization <axis = -1, epsilon = 1e-6> (s, g, b)
}}
"""
_TYPE = "t = Gather(type, types)\n"
_RANGE = "n = Shape <start = 1, end = 2> (ids)\ni = Slice(range, zero, n, one, one)\np = Gather(position, i)\n"
_MASK = "c = Cast <to = 6> (types)\nk = CumSum(c, axis)\ni = Cast <to = 7> (k)\np = Gather(position, i)\n"
EXAMPLES: list[str] = [
    _GRAPH.format(body=_TYPE + _RANGE + "a = Add(w, t)\ns = Add(a, p)"),
    _GRAPH.format(body=_TYPE + _MASK + "a = Add(t, p)\ns = Add(w, a)"),
    _GRAPH.format(body=_RANGE + "s = Add(p, w)"),
    _GRAPH.format(body="p = Gather(position, position_ids)\ns = Add(w, p)"),
    _GRAPH.format(body="p = Gather(position, row)\ns = Add(w, p)"),
    _GRAPH.format(body=_TYPE + "s = Add(w, t)"),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(body="p = Gather <axis = 1> (given, zero)\ns = Add(w, p)"), "a lookup does not gather rows"),
    (_GRAPH.format(body="m = Mul(position, g)\np = Gather(m, row)\ns = Add(w, p)"), "a table is not a constant matrix"),
    (_GRAPH.format(body=_TYPE + "a = Add(w, t)\ns = Add(a, given)"), "uncomputed IR value"),
]
