"""full_mask: a mask that masks nothing is taken off FusedSdpa.

transformers makes a mask for every encoder, of positions (0, 1, 2, ...) alone where the caller gives none: `position >= 0`,
spread over [B,1,S,S], and 0 where that holds. It is built in each run and read by each layer. Nothing is tried out here: the
mask is 0 because every position is 0 or more, whatever the length. Masks that depend on anything else stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, Graph, constant_number, origin_of
from ..rewrite import Applied, Change, Match, Prove, Refusal
from .mask import dependencies, made_by

NAME = "full_mask"
RULES: list[pattern.RewriteRule] = []
MASK = 3  # the place of FusedSdpa's mask
MOVES = frozenset("Expand Unsqueeze Squeeze Reshape Transpose Identity Tile Slice Gather".split())


def apply(graph: Graph, prove: Prove | None = None) -> tuple[Graph, Change]:
    """Take off every mask that is always 0, in a copy of `graph`; a mask made of no input's numbers that is not is a refusal.

    With `prove` the attention without the mask is proven against the attention with all that makes the mask.
    """
    copy = graph.copy()
    applied, refusals = list[Applied](), list[Refusal]()
    depends = dependencies(copy.model.graph)
    for node in copy.model.graph:
        mask = node.inputs[MASK] if (node.domain, node.op_type) == (DOMAIN, "FusedSdpa") and len(node.inputs) > MASK else None
        if mask is None or depends.get(mask):
            continue
        answer: float | str | None = f"{mask.name} depends on positions only, and may mask something"
        if _is_zero(mask):
            answer = _proven(node, mask, depends, prove) if prove else None
        module = origin_of(node).module
        if isinstance(answer, str):
            refusals.append(Refusal(NAME, str(node.name), node.op_type, module, answer))
            continue
        node.replace_input_with(MASK, None)
        applied.append(Applied(NAME, str(node.name), module, answer))
    if applied:
        ir.passes.common.RemoveUnusedNodesPass()(copy.model)
    return copy, Change(tuple(applied), tuple(refusals))


def _proven(node: ir.Node, mask: ir.Value, depends: Mapping[ir.Value, frozenset[ir.Value]], prove: Prove) -> float | str:
    bare = ir.Node(node.domain, node.op_type, node.inputs[:MASK], list(node.attributes.values()), name=f"{node.name}.proof")
    made = made_by(mask, depends) if mask in depends else []  # a constant has no nodes
    answer = prove(Match(NAME, (*made, node), tuple(node.outputs), (bare,), tuple(bare.outputs), (), {}))
    for at in range(MASK):
        bare.replace_input_with(at, None)  # as a reader it would stand in the way of later rules
    return answer


def _is_zero(value: ir.Value | None) -> bool:
    """Whether a float value is 0 everywhere, for every input."""
    if value is None or value.const_value is not None:
        return value is not None and not value.const_value.numpy().any()  # type: ignore[union-attr]
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Where":
        return (_holds(node.inputs[0]) and _is_zero(node.inputs[1])) or (_is_zero(node.inputs[1]) and _is_zero(node.inputs[2]))
    return node.op_type in MOVES and _is_zero(node.inputs[0])


def _holds(value: ir.Value | None) -> bool:
    """Whether a bool value is true everywhere, for every input."""
    if value is None or value.const_value is not None:
        return value is not None and bool(value.const_value.numpy().all())  # type: ignore[union-attr]
    node = value.producer()
    if node is None:
        return False
    if node.op_type in ("And", "Or"):
        return (all if node.op_type == "And" else any)(_holds(part) for part in node.inputs)
    if node.op_type == "GreaterOrEqual":
        return _least(node.inputs[0]) >= (math.inf if (most := constant_number(node.inputs[1])) is None else most)
    return node.op_type in MOVES and _holds(node.inputs[0])


def _least(value: ir.Value | None) -> float:
    """A number that no element of an integer value is below; -inf where none is known."""
    if value is None:
        return -math.inf
    if value.const_value is not None:
        return float(np.min(value.const_value.numpy(), initial=math.inf))
    node = value.producer()
    if node is None:
        return -math.inf
    if node.op_type == "Range":
        start, step = constant_number(node.inputs[0]), constant_number(node.inputs[2])
        return start if start is not None and step is not None and step > 0 else -math.inf
    return _least(node.inputs[0]) if node.op_type in MOVES else -math.inf


_GRAPH = """
<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
example (float[B, 2, S, 3] q, float[B, 2, 3, S] k, float[B, 2, S, 3] v, bool[B, 1, S, S] seen) => (float[B, 2, S, 3] y)
<int64 start = {{{start}}}, int64 one = {{1}}, int64 least = {{0}}, int64 less = {{-1}},
 float zero = {{0}}, float low = {{-30000}}, int64[3] axes = {{0, 1, 3}}, int64[2] middle = {{1, 2}}, int64[1] first = {{1}}>
{{
  t = Shape <start = 2, end = 3> (q)
  n = Squeeze(t)
  r = Range(start, n, one)
  p = Unsqueeze(r, axes)
  g = {compare}
  b = Shape <start = 0, end = 1> (q)
  s = Concat <axis = 0> (b, first, t, t)
  e = Expand(g, s)
  m = Where(e, zero, low)
  y = bertc.FusedSdpa <scale = 0.5> (q, k, v, m)
}}
"""
_HOLDS = "GreaterOrEqual(p, least)"
EXAMPLES: list[str] = [_GRAPH.format(start=0, compare=_HOLDS), _GRAPH.format(start=0, compare="GreaterOrEqual(p, less)")]
NEAR_MISSES: list[tuple[str, str]] = [
    (_GRAPH.format(start=-1, compare=_HOLDS), "may mask something"),
    (_GRAPH.format(start=0, compare="Greater(p, least)"), "may mask something"),
]
