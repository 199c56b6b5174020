"""What shape arithmetic computes, by name: which dim each element of a small integer tensor holds, and the shapes made of them.

onnx's shape inference follows a dim through Shape, Gather and Concat, and loses it in a Range, in a Slice of a table up to a
length, and in what torch.jit writes before every Expand, Where(sizes == -1, 1, sizes). A dim is never negative: that is `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

MAX_ELEMENTS = 64  # elements of a tensor of sizes; larger ones are data
KEEPS_ELEMENTS = frozenset({"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"})
Element = Any  # int, ir.SymbolicDim, or None where it is not known


class SizeReader:
    """Reads values as flat lists of elements; `named` says what a dim is called by now."""

    def __init__(self, named: Callable[[Any], Any]) -> None:
        self.named = named
        self._found: dict[ir.Value, list[Element] | None] = {}

    def __call__(self, value: ir.Value | None) -> list[Element] | None:
        """The elements of an integer tensor, None where it is no arithmetic of sizes."""
        if value is None:
            return None
        if value not in self._found:
            self._found[value] = None  # a graph has no cycles; a broken one must not hang
            self._found[value] = self._read(value)
        return self._found[value]

    def shape(self, value: ir.Value | None) -> list[Element] | None:
        """The dims of a value."""
        if value is None or value.shape is None:
            return None
        return [dim if isinstance(dim, int) else self._name(dim) for dim in value.shape]

    def _name(self, dim: Any) -> Element:
        found = self.named(dim)
        return found if isinstance(found, int) or found.value else None

    def _read(self, value: ir.Value) -> list[Element] | None:
        if value.const_value is not None:
            return _constant(value.const_value)
        node = value.producer()
        if node is None or node.domain:
            return None
        if node.op_type in KEEPS_ELEMENTS:
            integer = value.dtype is None or value.dtype.is_integer()
            return self(node.inputs[0]) if integer else None
        rule = getattr(self, f"_{node.op_type.lower()}", None)
        return rule(node) if rule else None

    def _shape(self, node: ir.Node) -> list[Element] | None:
        dims = self.shape(node.inputs[0])
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        return None if dims is None else dims[start.as_int() if start else 0 : end.as_int() if end else None]

    def _gather(self, node: ir.Node) -> list[Element] | None:
        values, picked = map(self, node.inputs[:2])
        if values is None or picked is None or not all(isinstance(i, int) and -len(values) <= i < len(values) for i in picked):
            return None
        return [values[i] for i in picked]

    def _slice(self, node: ir.Node) -> list[Element] | None:
        elements, *bounds = map(self, (*node.inputs[:3], *node.inputs[4:5]))
        numbers = [bound[0] if bound is not None and len(bound) == 1 else None for bound in bounds]
        if elements is None or not all(isinstance(number, int) for number in numbers):
            return None
        return elements[slice(*numbers)]

    def _concat(self, node: ir.Node) -> list[Element] | None:
        parts = [self(value) for value in node.inputs]
        return None if any(part is None for part in parts) else [element for part in parts for element in part or ()]

    def _constantofshape(self, node: ir.Node) -> list[Element] | None:
        count, filling = self(node.inputs[0]), node.attributes.get("value")
        if count is None or len(count) != 1 or not isinstance(count[0], int) or count[0] > MAX_ELEMENTS:
            return None
        made = _constant(filling.as_tensor()) if filling is not None else None
        return made * count[0] if made else None

    def _mul(self, node: ir.Node) -> list[Element] | None:
        return self._each(node, lambda a, b: a * b if _numbers(a, b) else b if a == 1 else a if b == 1 else None)

    def _equal(self, node: ir.Node) -> list[Element] | None:
        return self._each(node, _equals)

    def _where(self, node: ir.Node) -> list[Element] | None:
        return self._each(node, lambda keep, a, b: None if keep is None else a if keep else b)

    def _each(self, node: ir.Node, rule: Callable[..., Element]) -> list[Element] | None:
        given = [self(value) for value in node.inputs]
        if any(elements is None for elements in given):
            return None
        length = max(len(elements or ()) for elements in given)
        if any(len(elements or ()) not in (1, length) for elements in given):
            return None
        wide = [(elements or []) * (length if len(elements or ()) == 1 else 1) for elements in given]
        return [rule(*elements) for elements in zip(*wide, strict=True)]


def inferred_dims(node: ir.Node, sizes: SizeReader) -> list[Element] | None:
    """The dims of a node's output as far as its arithmetic tells them; None for an operator that reads no sizes."""
    rule = {"Reshape": _reshaped, "Expand": _expanded, "Slice": _sliced, "Range": _range}.get(node.op_type)
    if node.domain or (rule is None and node.op_type != "ConstantOfShape"):
        return None
    return rule(node, sizes) if rule else sizes(node.inputs[0])


def _reshaped(node: ir.Node, sizes: SizeReader) -> list[Element] | None:
    before, target = sizes.shape(node.inputs[0]), sizes(node.inputs[1])
    if before is None or target is None or ("allowzero" in node.attributes and node.attributes["allowzero"].as_int()):
        return None
    kept = [before[i] if i < len(before) else None for i in range(len(target))]
    return [kept[i] if element == 0 else None if element == -1 else element for i, element in enumerate(target)]


def _expanded(node: ir.Node, sizes: SizeReader) -> list[Element] | None:
    before, target = sizes.shape(node.inputs[0]), sizes(node.inputs[1])
    if before is None or target is None:
        return None
    rank = max(len(before), len(target))
    pairs = zip([1] * (rank - len(before)) + before, [1] * (rank - len(target)) + target, strict=True)
    return [b if a == 1 else a if b == 1 or _equals(a, b) else None for a, b in pairs]


def _sliced(node: ir.Node, sizes: SizeReader) -> list[Element] | None:
    """A slice of a constant table from 0 up to a length has that length: what it is too short for, the model cannot run."""
    before = sizes.shape(node.inputs[0])
    table = node.inputs[0] is not None and node.inputs[0].const_value is not None
    starts, ends, axes, steps = (sizes(v) for v in (*node.inputs[1:], *[None] * (5 - len(node.inputs))))
    if before is None or starts is None or ends is None or (axes is None and len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    found = list(before)
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        if not isinstance(axis, int):
            return None
        whole = (starts[i], steps[i] if steps else 1) == (0, 1)
        found[axis] = _cut(before[axis], ends[i], table) if whole else None
    return found


def _cut(dim: Element, end: Element, table: bool) -> Element:
    if isinstance(end, int):
        return dim if end >= 2**31 - 1 else min(dim, end) if isinstance(dim, int) and end >= 0 else None
    return end if (table and isinstance(dim, int)) or _equals(dim, end) else None


def _range(node: ir.Node, sizes: SizeReader) -> list[Element] | None:
    start, limit, step = map(sizes, node.inputs)
    return limit if (start, step) == ([0], [1]) else None


def _constant(tensor: Any) -> list[Element] | None:
    integer = tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL
    return [int(number) for number in tensor.numpy().reshape(-1)] if integer and tensor.size <= MAX_ELEMENTS else None


def _numbers(*elements: Element) -> bool:
    return all(isinstance(element, int) for element in elements)


def _equals(a: Element, b: Element) -> bool | None:
    """Whether two elements are equal, None where that depends on the sizes."""
    if a is None or b is None:
        return None
    if _numbers(a, b):
        return bool(a == b)
    if _numbers(a) or _numbers(b):
        number = a if isinstance(a, int) else b
        return False if number < 0 else None
    return True if a.value == b.value else None
