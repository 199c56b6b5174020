"""Ways in which a rewrite can be wrong: a node left out, an input swapped, an attribute or a weight changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from bertc.fusions.rewrite import Match

Mutation = Callable[[ir.Node], None]


def replaced(index: int, change: Callable[[np.ndarray], np.ndarray]) -> Mutation:
    """An input's constant changed, as a new initializer."""

    def mutate(node: ir.Node) -> None:
        old = node.inputs[index]
        assert old is not None and old.const_value is not None
        array = change(old.const_value.numpy())
        new = ir.Value(name=f"{old.name}.mutated", const_value=ir.tensor(array), shape=ir.Shape(array.shape), type=old.type)
        node.replace_input_with(index, new)

    return mutate


def dropped(index: int) -> Mutation:
    return lambda node: node.replace_input_with(index, None)


def swapped(first: int, second: int) -> Mutation:
    def mutate(node: ir.Node) -> None:
        a, b = node.inputs[first], node.inputs[second]
        node.replace_input_with(first, b)
        node.replace_input_with(second, a)

    return mutate


def attribute(name: str, change: Callable[[Any], Any]) -> Mutation:
    def mutate(node: ir.Node) -> None:
        found = node.attributes[name].value if name in node.attributes else None
        made = change(found)
        make = {str: ir.AttrString, int: ir.AttrInt64, float: ir.AttrFloat32}[type(made)]
        node.attributes[name] = make(name, made)

    return mutate


def changed(match: Match, mutate: Mutation) -> Match:
    """The match with its last new node copied and changed; the match itself stays as it is."""
    node = match.new_nodes[-1]
    copy = ir.Node(
        node.domain, node.op_type, node.inputs, list(node.attributes.values()), num_outputs=len(node.outputs), name="mutated"
    )
    mutate(copy)
    made = dict(zip(node.outputs, copy.outputs, strict=True))
    outputs = tuple(made.get(value, value) for value in match.new_outputs)
    return dataclasses.replace(match, new_nodes=(*match.new_nodes[:-1], copy), new_outputs=outputs)
