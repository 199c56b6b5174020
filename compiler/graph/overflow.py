"""Whole numbers that do not fit their type: what comes of them is each runtime's own (ONNX Runtime's ReduceSum saturates, numpy's
wraps around), so such a node is left to the runtime and not computed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

MOST_BITS = 4096  # of a bound; a power beyond them overflows every type
# The largest size of a result, by the largest sizes of what goes in and the number of elements that are summed at most.
BOUNDS: dict[str, Callable[[Sequence[int], int], int]] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Range"), lambda sizes, _: sum(sizes)),
    **dict.fromkeys(("Neg", "Abs"), lambda sizes, _: max(sizes)),
    "Div": lambda sizes, _: sizes[0],  # the smallest number by -1
    "Mul": lambda sizes, _: math.prod(sizes),
    "Pow": lambda sizes, _: _power(sizes[0], sizes[1]),
    **dict.fromkeys(("ReduceSum", "CumSum", "ReduceL1"), lambda sizes, count: sizes[0] * count),
    "ReduceSumSquare": lambda sizes, count: sizes[0] ** 2 * count,
    "ReduceProd": lambda sizes, count: _power(sizes[0], count),
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), lambda sizes, count: math.prod(sizes) * count),
}


def may_overflow(node: ir.Node) -> bool:
    """Whether a node of constants may give a whole number that its type does not hold, or is a cast of one."""
    arrays = [v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None]
    arrays = [array for array in arrays if array.size and array.dtype.kind in "iuf"]
    if not arrays:
        return False
    if node.op_type == "Cast":
        return _cast_overflows(node, arrays[0])
    bound = BOUNDS.get(node.op_type)
    whole = [array for array in arrays if array.dtype.kind in "iu"]
    if bound is None or arrays[0].dtype.kind == "f" or not whole:
        return False
    sizes = [max(abs(int(array.min())), abs(int(array.max()))) for array in whole]
    if len(sizes) < 2 and node.op_type == "Pow":
        return True  # a power that is no whole number
    return bound(sizes, max(array.size for array in whole)) > np.iinfo(whole[0].dtype).max


def _cast_overflows(node: ir.Node, array: np.ndarray) -> bool:
    """Of numbers outside a type of whole numbers, and of NaN; between whole numbers the low bits stay everywhere."""
    to = ir.DataType(node.attributes.get_int("to", 0)).numpy()
    if array.dtype.kind != "f" or to.kind not in "iu":
        return False
    limits, numbers = np.iinfo(to), np.trunc(array.astype(np.float64))
    return not (np.isfinite(numbers) & (numbers >= float(limits.min)) & (numbers < float(limits.max) + 1)).all()


def _power(base: int, exponent: int) -> int:
    return base**exponent if base < 2 or base.bit_length() * exponent <= MOST_BITS else 1 << MOST_BITS
