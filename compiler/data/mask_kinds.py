"""Which inputs are masks, and of which kind: by their names, and by what the graph does with them.

A float mask is spelt in two ways, 1 where a token is, or a number to add to the scores: 0 where one is. One of integers or flags
may be 1 where padding is, as nn.MultiheadAttention wants it. Random numbers in its place make a model of one token, or of none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core import Feeds, is_mask
from ..graph import Graph
from .mask_uses import BINARY, INVERTED, kind_of_flags
from .samples import Layout, masked_rows

if TYPE_CHECKING:
    import onnx_ir as ir

ADDITIVE = "additive"
LOW = -10000.0  # what BERT adds to the score of padding; float16 holds it
STEPS = 12  # nodes between a mask and the softmax of the first layer
_CARRYING = frozenset(
    {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Tile", "Flatten", "Where"}
)
_SCORES = frozenset({"Add", "Div", "Mul", "Cast", "Identity", "Max", "Reshape"})


def mask_kinds(graph: Graph) -> dict[str, str]:
    """{input: BINARY, INVERTED or ADDITIVE} of the inputs that are masks.

    An input is one by its name. Under any name a float input is one where the graph computes 1 - x of it, or adds it to what a
    softmax takes; one of integers or flags is where it says which values are replaced by a low number or by none, or where it
    is counted to divide by.
    """
    found = {}
    for spec, value in zip(graph.inputs, graph.model.graph.inputs, strict=True):
        named = is_mask(spec.name, spec.dtype)
        kind = None
        if spec.dims and np.dtype(spec.dtype).kind == "f":
            kind = _float_kind(value)
        elif len(spec.dims) > 1 and np.dtype(spec.dtype).kind in "iub":
            kind = kind_of_flags(value)
        if kind or named:
            found[spec.name] = kind or BINARY
    return found


def rows_masked(feeds: Feeds, kinds: Mapping[str, str], layout: Layout | None = None) -> tuple[int, ...]:
    """`dead_rows` of feeds of a graph whose `mask_kinds` are known. A mask that is added to scores tells of none."""
    told = {name: np.asarray(feeds[name]) for name, kind in kinds.items() if kind != ADDITIVE}
    living = {name: array == 0 if kinds[name] == INVERTED else array for name, array in told.items()}
    return masked_rows({name: a for name, a in living.items() if a.dtype.kind != "f" or (a > 0).any()}, layout)


def dead_rows_of(graph: Graph, feeds: Feeds) -> tuple[int, ...]:
    """`dead_rows` of feeds of a graph, whatever its masks are called and whichever way round they are."""
    return rows_masked(feeds, mask_kinds(graph), Layout.of(graph.inputs, ()))


def _float_kind(start: ir.Value) -> str | None:
    """What the first reader that tells makes of a float input; None where none tells."""
    for node, position in _readers(start):
        if node.op_type == "Sub" and position == 1 and _is_one(node.inputs[0]):
            return BINARY
        if node.op_type == "Add" and node.inputs[1 - position] is not None and _reaches_softmax(node.outputs[0], STEPS):
            return ADDITIVE
    return None


def _readers(start: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    todo, seen = [start], {start}
    while todo:
        for node, position in todo.pop().uses():
            yield node, position
            if node.op_type in _CARRYING and (position == 0 or node.op_type == "Where") and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append(node.outputs[0])


def _is_one(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return constant is not None and constant.size == 1 and float(constant.numpy().reshape(-1)[0]) == 1.0


def _reaches_softmax(value: ir.Value, steps: int) -> bool:
    """Whether a softmax takes what is computed of this value by adding and scaling alone: no norm, no product of matrices."""
    users = [node for node, _ in value.uses()]
    if any(node.op_type == "Softmax" for node in users):
        return True
    return steps > 0 and any(_reaches_softmax(n.outputs[0], steps - 1) for n in users if n.op_type in _SCORES)
