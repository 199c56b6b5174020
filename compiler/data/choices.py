"""Numbers that a graph compares a single integer input with: a sampling rate that an If asks for is no 0 or 1.

Without them the branches of such a graph would never be run, neither to find its sizes nor to prove it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..graph import Graph, constant_of

COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod"})
CARRYING = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Expand"})
MOST = 4  # numbers of an input
Choices = Mapping[str, tuple[int, ...]]


def choices_of(graph: Graph) -> Choices:
    """{input: numbers to feed it in turn}, of integer inputs of one element that the graph compares with constants.

    The constants, and last 0, which is most likely none of them: both ways of an If are taken.
    """
    found = {}
    for value in graph.model.graph.inputs:
        single = value.shape is not None and all(dim == 1 for dim in value.shape)
        if single and value.dtype is not None and value.dtype.is_integer():
            compared = sorted(_compared(value))[:MOST]
            if compared:
                found[str(value.name)] = tuple(dict.fromkeys([*compared, 0]))
    return found


def _compared(start: ir.Value) -> set[int]:
    numbers: set[int] = set()
    seen, todo = {start}, [start]
    while todo:
        for node, position in todo.pop().uses():
            if node.op_type in COMPARING and not node.domain:
                other = node.inputs[1 - position]
                constant = constant_of(other) if other is not None else None
                numbers |= {int(each) for each in constant.numpy().reshape(-1)[:MOST]} if constant is not None else set()
            elif node.op_type in CARRYING and position == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append(node.outputs[0])
    return numbers


def turns(choices: Choices) -> int:
    """How many sets of feeds show every choice."""
    return max(map(len, choices.values()), default=1)


def chosen(feeds: Mapping[str, np.ndarray], choices: Choices, turn: int) -> dict[str, np.ndarray]:
    """The feeds with the choice whose turn it is in each input that has some."""
    given = {name: np.full_like(feeds[name], values[turn % len(values)]) for name, values in choices.items() if name in feeds}
    return {**feeds, **given}
