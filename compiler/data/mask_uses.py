"""What a graph does with an input of integers or flags: is it a mask, and does 1 stand for a token or for padding?

Followed from the input while it stays flags: casts, reshapes, comparisons with 0 and 1, NOT, 1 - x. What replaces values by a low
number where the flag is set hides what the flag marks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

BINARY, INVERTED = "binary", "inverted"  # 1 where a token is; 1 where padding is
LOW = -1e3  # a number from here down, added to a score, leaves nothing of it
CARRYING = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice", "Tile", "Flatten"})
SPREADING = ("Expand", "Cast", "Unsqueeze", "Reshape")  # of one number, the same number in every place
OF_A_COUNT = frozenset({"Cast", "Unsqueeze", "Clip", "Max", "Add", "Expand", "Reshape", "Identity"})
COUNT_STEPS = 6  # nodes between the number of tokens and what is divided by it
TABLES = frozenset({"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"})
# (operator, constant): whether the result is set where the flag is. The flag is the first operand.
COMPARED = {
    ("Equal", 0): False, ("Equal", 1): True,
    ("Greater", 0): True, ("GreaterOrEqual", 1): True, ("Less", 1): False, ("LessOrEqual", 0): False,
}  # fmt: skip


def kind_of_flags(start: ir.Value) -> str | None:
    """BINARY or INVERTED; None for an input that is no mask as far as the graph shows: it indexes a table of more than two rows,
    or does nothing that masks do. Uses that contradict each other tell that it is one, not which way round."""
    said: set[bool] = set()
    todo, seen = [(start, True)], {start}
    while todo:
        value, straight = todo.pop()
        for node, position in value.uses():
            if node.op_type in TABLES and _indexes(node, position) and _rows(node) != 2:
                return None
            hides = _hides(node, position)
            if hides is not None:
                said.add(hides == straight)  # whether padding is where the input is 1
            elif node.op_type == "ReduceSum" and position == 0 and _divides(node.outputs[0], COUNT_STEPS):
                said.add(not straight)  # what is counted are tokens
            onward = _onward(node, position)
            if onward is not None and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append((node.outputs[0], straight == onward))
    return None if not said else INVERTED if said == {True} else BINARY


def _rows(node: ir.Node) -> int | None:
    """The rows of a table: one of two is looked up by flags, of more by what has more values than they do."""
    table = node.inputs[0]
    if node.op_type != "Gather" or table is None or node.attributes.get_int("axis", 0) != 0:
        return None
    shape = table.shape if table.const_value is None else table.const_value.shape
    return shape[0] if shape is not None and len(shape) and isinstance(shape[0], int) else None


def _indexes(node: ir.Node, position: int) -> bool:
    return node.op_type == "EmbedLayerNormalization" or position == 1


def _hides(node: ir.Node, position: int) -> bool | None:
    """Whether a set flag hides (True) or shows (False) a value here; None where this node is no such thing."""
    if node.op_type == "Where" and position == 0:
        taken, other = (_number(node.inputs[at]) for at in (1, 2))
        for most in (LOW, 0.0):  # a low number says more than a 0 beside it
            hides, shows = (number is not None and (number <= LOW or number == most) for number in (taken, other))
            if hides != shows:
                return hides
    if node.op_type == "Mul" and (scale := _number(node.inputs[1 - position])) is not None and scale <= LOW:
        return True
    return None


def _onward(node: ir.Node, position: int) -> bool | None:
    """Whether what this node gives is set where the flag is (True) or where it is not (False); None where it is no flag."""
    if node.op_type in CARRYING and position == 0:
        return True
    if node.op_type == "Not":
        return False
    if node.op_type in ("And", "Or"):
        return True
    if node.op_type == "Sub" and position == 1 and _number(node.inputs[0]) == 1:
        return False
    if node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        constant = _number(node.inputs[1 - position])
        if position == 0 or node.op_type == "Equal":
            whole = constant is not None and constant.is_integer()
            return COMPARED.get((node.op_type, int(constant))) if constant is not None and whole else None
    return None


def _divides(value: ir.Value, steps: int) -> bool:
    uses = list(value.uses())
    if any(node.op_type == "Div" and position == 1 for node, position in uses):
        return True
    return steps > 0 and any(_divides(node.outputs[0], steps - 1) for node, _ in uses if node.op_type in OF_A_COUNT)


def _number(value: ir.Value | None) -> float | None:
    """The number that a value holds everywhere, where it is a constant or one that was expanded."""
    while value is not None and (node := value.producer()) is not None and node.op_type in SPREADING:
        value = node.inputs[0]
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    if constant is None or not constant.size:
        return None
    numbers = constant.numpy().reshape(-1)
    return float(numbers[0]) if numbers.dtype.kind in "iubf" and np.all(numbers == numbers[0]) else None
