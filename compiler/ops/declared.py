"""What the operators' attributes and inputs may be, held before a body reads them: a node may come from somebody's file.

An attribute has one type and one range wherever it stands; the names are those of the bodies' signatures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from ..core import InputError, SourceError, counted
from .builder import padded_inputs

INT, INTS, FLOAT, TEXT = (getattr(ir.AttributeType, name) for name in ("INT", "INTS", "FLOAT", "STRING"))
SIZE = 1 << 20  # heads, groups, steps and padding of a convolution: no model comes near it
LONGEST = 80  # characters of a value from a file that a message repeats
# Name -> type, and the least and the largest number.
ATTRIBUTES: Mapping[str, tuple[ir.AttributeType, float, float]] = {
    **dict.fromkeys(("num_heads", "group"), (INT, 1, SIZE)),
    "from_start": (INT, 0, 1),
    **dict.fromkeys(("strides", "dilations"), (INTS, 1, SIZE)),
    "pads": (INTS, 0, SIZE),
    **dict.fromkeys(("scale", "low"), (FLOAT, -3.5e38, 3.5e38)),
    "epsilon": (FLOAT, 0, 1),
    **dict.fromkeys(("form", "norm", "spread"), (TEXT, 0, 0)),
}


def told(node: ir.Node) -> str:
    """A node in a message: its operator and its name."""
    return f"node {str(node.name or '')[:LONGEST]!r} ({node.domain or 'ai.onnx'}.{node.op_type})"


@contextlib.contextmanager
def of_node(node: ir.Node) -> Iterator[None]:
    """What is wrong with a node, by a body that reads it, with the node's name: a SourceError, or the body's own class."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("node "):  # the body's own stand-in said so
            raise
        kind = SourceError if type(error) is InputError else type(error)
        raise kind(f"{told(node)}: {error}") from error


def check_attributes(node: ir.Node) -> None:
    """SourceError for an attribute of another type than the operators take, or outside its range."""
    for name, attribute in node.attributes.items():
        if name not in ATTRIBUTES:
            continue
        kind, least, most = ATTRIBUTES[name]
        if attribute.type != kind or attribute.value is None:
            raise SourceError(f"{told(node)}: its attribute {name} is of type {attribute.type.name}; it takes {kind.name}")
        for number in _numbers(attribute.value):
            if not least <= number <= most:  # NaN, too
                allowed = f"a finite number from {least:g} to {most:g}" if kind == FLOAT else f"{least:.0f} to {most:.0f}"
                raise SourceError(f"{told(node)}: its attribute {name} is {number:g}; it takes {allowed}")


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def given_inputs(node: ir.Node, count: int, needed: int = 1) -> list[Any]:
    """The inputs of a node that takes so many at most, None where one is absent; SourceError for more, or where one of the first
    that are `needed` is absent."""
    given = padded_inputs(node, count)
    if len(given) > count:
        raise SourceError(f"{told(node)} has {counted(len(given), 'input')}; it takes {count} at most")
    if absent := [index for index in range(needed) if given[index] is None]:
        raise SourceError(f"{told(node)} has no input {absent[0]}, which it needs")
    return given
