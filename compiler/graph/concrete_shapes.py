"""Shapes in numbers: what the dims of a graph's values are where its inputs have given sizes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from .model import Graph


def evaluate_dim(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    """A dim such as `((samples//80)) - 3`; None for one that is made of something else."""
    if isinstance(dim, int):
        return dim
    try:
        found = dim.evaluate(sizes)
    except (ValueError, TypeError, ZeroDivisionError):  # what is no arithmetic of sizes
        return None
    return found if isinstance(found, int) else None


class ConcreteShapes:
    """The shapes of a graph's values, by what onnx infers where the inputs have these sizes, else by the names of their dims.

    onnx knows convolutions, whose lengths the exporter's names may lose, and not slices by a size, which the names keep.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._inferred = _inferred(graph, sizes)

    def dims(self, value: ir.Value | None) -> list[int] | None:
        """Of a value of the graph; None where one of them is not known."""
        if value is None:
            return None
        if (inferred := self._inferred.get(str(value.name))) is not None:
            return inferred
        if value.shape is None:
            return None
        found = [evaluate_dim(dim, self._sizes) for dim in value.shape]
        return None if None in found else [n for n in found if n is not None]


def _number(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or str(dim.value) in sizes:
        return dim if isinstance(dim, int) else sizes[str(dim.value)]
    computed = evaluate_dim(dim, sizes)
    return dim if computed is None else computed


def _inferred(graph: Graph, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Of all values where that is a number for each axis."""
    from onnx_ir.passes.common import ShapeInferencePass

    copy = graph.copy().model
    for value in copy.graph.inputs:
        value.shape = ir.Shape([_number(dim, sizes) for dim in value.shape or ()])
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    model = ShapeInferencePass(data_prop=True)(copy).model
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    shapes = {str(value.name): list(value.shape or ()) for value in made if value.shape is not None}
    numbers = {name: [dim for dim in dims if isinstance(dim, int)] for name, dims in shapes.items()}
    return {name: dims for name, dims in numbers.items() if len(dims) == len(shapes[name])}
