"""How com.microsoft operators are written: their outputs have types and shapes, which ONNX's shape inference does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN = "com.microsoft"


def contrib(
    op: Any, kind: str, *given: ir.Value | None, like: ir.Value | None = None, outputs: int = 1, **attributes: Any
) -> Any:
    """A node of domain com.microsoft, every output float32 and of the shape of `like`; its output, or all of several."""
    made = getattr(op, kind)(*given, _domain=DOMAIN, _outputs=outputs, **attributes)
    for value in [made] if outputs == 1 else made:
        typed(value, None if like is None else like.shape)
    return made


def typed(value: ir.Value, shape: ir.Shape | Sequence[int | str | ir.SymbolicDim | None] | None) -> ir.Value:
    """The value as float32 of a shape."""
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = shape if shape is None or isinstance(shape, ir.Shape) else ir.Shape(shape)
    return value


def of_rank(value: ir.Value, *ranks: int) -> bool:
    """Whether a value is known to have one of these ranks."""
    return value.shape is not None and len(value.shape) in ranks


def same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values are known to have one shape."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(same_size(a, b) for a, b in zip(one.shape, other.shape, strict=True))


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are one number or one name; two that are not known are not."""
    return one == other and getattr(one, "value", one) is not None


def counts_from_0(positions: ir.Value) -> bool:
    """Whether positions are 0, 1, 2 ... in each row, which the kernel takes them for: the first so many of a constant row."""
    node = positions.producer()
    if node is None or node.op_type != "Slice" or node.domain:
        return False
    row, start, _, *rest = (ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None)
    axis, step = (int(t.numpy().reshape(-1)[0]) if t is not None and t.size == 1 else None for t in [*rest, None, None][:2])
    if row is None or start is None or start.size != 1 or int(start.numpy().reshape(-1)[0]) or len(rest) not in (1, 2):
        return False
    numbers = row.numpy()
    counted = numbers.ndim == 2 and bool((numbers == np.arange(numbers.shape[1])).all())
    return counted and axis in (1, -1) and (len(rest) == 1 or step == 1)
