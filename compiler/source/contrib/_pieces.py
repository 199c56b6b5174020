"""What several expansions are made of: ranks, sizes, activations, masks added to scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError
from ...ops import constant

INT64 = np.int64


class NeedsRank(InputError):
    """The rank of an input is not known (yet)."""


def rank(value: ir.Value) -> int:
    """Raises NeedsRank where it is not known."""
    if value.const_value is not None:
        return len(value.const_value.shape)
    if value.shape is None:
        raise NeedsRank(f"the rank of its input {value.name!r} is not known")
    return len(value.shape)


def flag(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def refuse_flags(node: ir.Node, *names: str) -> None:
    """Raises InputError for modes that are switched on and have no expansion."""
    for name in names:
        if flag(node, name):
            raise InputError(f"{name}={node.attributes.get_int(name)} has no expansion")


def integers(op: Any, *values: int) -> ir.Value:
    return constant(op, list(values), INT64)


def size(op: Any, value: ir.Value, axis: int) -> ir.Value:
    """One dimension as a vector of one element."""
    return op.Shape(value, start=axis, end=axis + 1)


def count(op: Any, length: ir.Value) -> ir.Value:
    """0 .. length-1, of a length that is a vector of one element."""
    return op.Range(constant(op, 0, INT64), op.Squeeze(length, integers(op, 0)), constant(op, 1, INT64))


def swapped(op: Any, value: ir.Value) -> ir.Value:
    """The last two axes swapped; a vector stays."""
    axes = [*range(rank(value))]
    return value if len(axes) < 2 else op.Transpose(value, perm=[*axes[:-2], axes[-1], axes[-2]])


def activated(op: Any, value: ir.Value, node: ir.Node, parameters: list[float]) -> ir.Value:
    """The attribute `activation` of FusedConv and FusedGemm."""
    name = node.attributes.get_string("activation", "")
    if name in ("", "Relu", "Sigmoid", "Tanh"):
        return getattr(op, name)(value) if name else value
    if name == "LeakyRelu" and parameters:
        return op.LeakyRelu(value, alpha=parameters[0])
    if name == "HardSigmoid" and len(parameters) > 1:
        return op.HardSigmoid(value, alpha=parameters[0], beta=parameters[1])
    if name == "Clip" and len(parameters) > 1:
        return op.Clip(value, *(constant(op, bound) for bound in parameters[:2]))
    raise InputError(f"activation {name!r} has no expansion")


def additive(op: Any, keep: ir.Value, low: float) -> ir.Value:
    """0 where `keep`, else `low`."""
    return op.Where(keep, constant(op, 0.0), constant(op, low))
