"""Which constants are computed while a graph is cleaned up: small ones, whose values every runtime agrees on."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from .overflow import may_overflow

# Elements. Shape arithmetic is smaller; weights are larger, and folding would load and copy them.
FOLD_LIMIT = 64
FOLDED_LIMIT = 1024
# Operators whose result may be larger than all that they read.
GROWING = frozenset(
    "Expand Tile ConstantOfShape Range Pad Resize Upsample OneHot EyeLike CenterCropPad Col2Im MaxUnpool ConvTranspose STFT DFT "
    "BlackmanWindow HannWindow HammingWindow MelWeightMatrix RandomNormal RandomUniform Einsum Sum Mean Max Min".split()
)


def fold_small(model: ir.Model) -> None:
    """Constants of at most FOLD_LIMIT elements are computed, where what they make has at most FOLDED_LIMIT."""
    fold_constants(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLDED_LIMIT, should_fold=_is_small)


def _is_small(node: ir.Node) -> bool | None:
    """False for a node that reads a large constant, makes one (the folder looks at a result when it is there), or overflows.

    None leaves the choice to the folder.
    """
    sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    large = any(size > FOLD_LIMIT for size in sizes) or (node.op_type in GROWING and _made(node) > FOLDED_LIMIT)
    return False if large or may_overflow(node) else None


def _made(node: ir.Node) -> float:
    """How many elements a node of GROWING makes, at most; infinity where nothing says so. 0 where it is not folded anyway."""
    values = [value.const_value for value in node.inputs if value is not None]
    numbers = [value.numpy() for value in values if value is not None]
    if len(numbers) < len(values):
        return 0
    if node.op_type == "Range" and all(array.size == 1 for array in numbers):
        start, end, step = (float(array.reshape(-1)[0]) for array in numbers)
        return max(0.0, (end - start) / step) if step else math.inf
    if node.op_type in ("Expand", "Tile", "ConstantOfShape"):
        one = numbers[0].size if node.op_type != "ConstantOfShape" else 1
        return one * math.prod(max(1.0, float(each)) for each in numbers[-1].reshape(-1))
    shapes = [value.shape for value in node.outputs]
    known = [shape.numpy() for shape in shapes if shape is not None and shape.is_static()]
    return max(map(math.prod, known)) if len(known) == len(shapes) else math.inf
