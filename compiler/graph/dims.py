"""Dims of a graph by name: which are equal, which node reads one, and reading each from one place.

onnx's shape inference invents a name for what two broadcast dims make, so that the masked scores of one attention lose the
names of batch and length, and with them everything behind. `unify_dims` finds the names that stand for one number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from .size_arithmetic import SizeReader, inferred_dims

BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Where"})
# What else lays two tensors over each other.
COMPARES = frozenset("And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mean Sum Pow Mod PRelu BitwiseAnd".split())
# Nodes between the product of q and k and the softmax: two terms, a scale and a masked_fill at most.
SCORE_STEPS = 6


def same_shape(a: ir.Shape | None, b: ir.Shape | None) -> bool:
    """Whether two shapes are known to be equal: number for number, name for name; an unnamed dim equals nothing."""
    return a is not None and b is not None and len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def same_dim(a: Any, b: Any) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return bool(a == b)
    return a.value is not None and a.value == b.value


def constant_number(value: ir.Value | None) -> float | None:
    """The number a constant of one element holds, or None."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _place_read(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(x, axis) of Gather(Shape(x), axis) and of Slice(Shape(x), [axis], [axis + 1])."""
    if node.op_type not in ("Gather", "Slice") or any(value is None for value in node.inputs[:2]):
        return None
    shape = node.inputs[0].producer()  # type: ignore[union-attr]
    index = constant_number(node.inputs[1])
    if index is None or shape is None or shape.op_type != "Shape" or shape.attributes.get("end") is not None:
        return None
    x, start = shape.inputs[0], shape.attributes.get("start")
    if x is None or x.shape is None or (start is not None and start.as_int()):
        return None
    axis = int(index) % len(x.shape) if -len(x.shape) <= index < len(x.shape) else None
    if axis is None or (node.op_type == "Slice" and not _ends_behind(node, axis, len(x.shape))):
        return None
    return x, axis


def _ends_behind(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether a Slice of a shape that starts at an axis takes this one dim."""
    end, step = constant_number(node.inputs[2]), constant_number(node.inputs[4]) if len(node.inputs) > 4 else 1
    if end is None or step != 1:
        return False
    return min(int(end) + rank if end < 0 else int(end), rank) == axis + 1


def share_dims(model: ir.Model) -> bool:
    """Read a named dim from the first value that has it. torch.jit reads it from values inside an attention (q's own Shape),
    and a value with a second reader cannot be fused away. Returns whether anything changed.
    """
    first: dict[str, tuple[ir.Value, int]] = {}
    changed = False
    for value in model.graph.inputs:
        _note_dims(value, first)
    for node in list(model.graph):
        place = _place_read(node) if node.outputs[0].uses() else None
        name = place[0].shape[place[1]] if place is not None else None  # type: ignore[index]
        if isinstance(name, int):
            _make_constant(model.graph, node, name)
            changed = True
        known = first.get(str(name.value)) if isinstance(name, ir.SymbolicDim) and name.value else None
        if place is not None and known is not None and known[0] is not place[0] and node.op_type == "Gather":
            _read_from(model.graph, node, *known)
            changed = True
        for value in node.outputs:
            _note_dims(value, first)
    return changed


def _make_constant(graph: ir.Graph, gather: ir.Node, dim: int) -> None:
    """Put a dim that is a number in the place of the node that reads it."""
    output = gather.outputs[0]
    shape = tuple(gather.inputs[1].const_value.shape)  # type: ignore[union-attr]
    tensor = ir.tensor(np.full(shape, dim, np.int64), name=f"{output.name}.dim")
    value = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype))
    if output.is_graph_output():
        return
    graph.register_initializer(value)
    output.replace_all_uses_with(value)


def _note_dims(value: ir.Value, first: dict[str, tuple[ir.Value, int]]) -> None:
    for axis, dim in enumerate(value.shape or ()):
        if isinstance(dim, ir.SymbolicDim) and dim.value:
            first.setdefault(str(dim.value), (value, axis))


def _read_from(graph: ir.Graph, gather: ir.Node, value: ir.Value, axis: int) -> None:
    rank = ir.Shape([len(value.shape)])  # type: ignore[arg-type]
    output = ir.Value(name=f"{gather.outputs[0].name}.shape", shape=rank, type=ir.TensorType(ir.DataType.INT64))
    shape = ir.node("Shape", [value], outputs=[output], metadata_props=dict(gather.metadata_props))
    old: Any = gather.inputs[1].const_value  # type: ignore[union-attr]
    index = ir.tensor(np.full(tuple(old.shape), axis, np.int64), name=f"{gather.outputs[0].name}.axis")
    place = ir.Value(name=index.name, const_value=index, shape=ir.Shape(index.shape), type=ir.TensorType(index.dtype))
    graph.register_initializer(place)
    graph.insert_before(gather, shape)
    gather.replace_input_with(0, output)
    gather.replace_input_with(1, place)


class _Names:
    """What each name stands for by now. `inputs` are the names that the graph's inputs have, `loose` those of them that no person
    gave: these say nothing about whether two inputs are of one size."""

    def __init__(self, model: ir.Model, loose: frozenset[str]) -> None:
        dims = [dim for value in model.graph.inputs for dim in value.shape or ()]
        self.inputs = {str(dim.value) for dim in dims if isinstance(dim, ir.SymbolicDim)}
        self.loose = loose
        self.same: dict[str, Any] = {}

    def find(self, dim: Any) -> Any:
        while isinstance(dim, ir.SymbolicDim) and dim.value in self.same:
            dim = self.same[dim.value]  # type: ignore[index]
        return dim

    def join(self, new: Any, known: Any) -> None:
        new, known = self.find(new), self.find(known)
        open_ = isinstance(new, ir.SymbolicDim) and new.value and new.value not in self.inputs
        if open_ and not same_dim(new, known) and (isinstance(known, int) or known.value):
            self.same[new.value] = known

    def tie(self, parts: list[Any]) -> None:
        """Dims of two inputs that are added are of one size."""
        given = [part for part in map(self.find, parts) if isinstance(part, ir.SymbolicDim) and part.value in self.inputs]
        given.sort(key=lambda part: str(part.value) in self.loose)  # a name that somebody gave is kept
        for part in given[1:]:
            if part.value in self.loose and not same_dim(part, given[0]):
                self.same[str(part.value)] = given[0]


def unify_dims(model: ir.Model, loose: frozenset[str] = frozenset()) -> dict[str, str | int]:
    """Give dims that are equal one name. The names of inputs stay, but for the `loose` ones; returns what became of these.

    Equal are the dims of a sum of equal dims, those that `size_arithmetic` computed, and the dims of masked scores and of the
    scores: what is added before a softmax is taken to broadcast to the product of q and k, as in FusedSdpa's contract (a
    batch of 1 under a mask for many is no attention that a model writes; the proof of each match runs batches of more than one).
    """
    names = _Names(model, loose)
    sizes = SizeReader(names.find)
    for node in model.graph:
        _join_made(node, sizes, names)
        if node.op_type == "Reshape":
            names.join(*_solved(node))
        if node.op_type in BROADCASTS or node.op_type in COMPARES or node.op_type == "MatMul":
            _join_broadcast(node, names)
        for parts in _demanded(node):
            names.tie(parts)
        if node.op_type == "Softmax" and node.inputs[0] is not None:
            _join_scores(node.inputs[0], names.join)
    for value in (value for node in model.graph for value in node.outputs):
        if value.shape is not None and any(names.find(dim) is not dim for dim in value.shape):
            value.shape = ir.Shape([names.find(dim) for dim in value.shape])
    ends = {name: names.find(ir.SymbolicDim(name)) for name in loose & names.same.keys()}
    return {name: end if isinstance(end, int) else str(end.value) for name, end in ends.items()}


def _join_made(node: ir.Node, sizes: SizeReader, names: _Names) -> None:
    inferred, out = inferred_dims(node, sizes), node.outputs[0].shape
    if inferred is None or out is None or len(inferred) != len(out):
        return
    for new, known in zip(out, inferred, strict=True):
        if known is not None:
            names.join(new, known)


def _join_broadcast(node: ir.Node, names: _Names) -> None:
    for new, parts in _aligned(node):
        names.tie(parts)
        wide = [names.find(part) for part in parts if part != 1]
        if wide and all(same_dim(part, wide[0]) for part in wide):
            names.join(new, wide[0])


def _demanded(node: ir.Node) -> Iterator[list[Any]]:
    """Dims of what a node reads that must be one size."""
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if node.op_type == "Concat" and all(shape is not None for shape in shapes):
        ranks = {len(shape) for shape in shapes}  # type: ignore[arg-type]
        rank = min(ranks)
        along = node.attributes.get_int("axis", 0) % rank if len(ranks) == 1 and rank else None
        if along is not None:
            yield from ([shape[axis] for shape in shapes] for axis in range(rank) if axis != along)  # type: ignore[index]
    if node.op_type == "MatMul" and all(shape is not None and len(shape) > 1 for shape in shapes):
        yield [shapes[0][-1], shapes[1][-2]]  # type: ignore[index]
    if node.op_type in ("LSTM", "GRU", "RNN"):
        states = [shape for shape in shapes[5:7] if shape is not None and len(shape) == 3]
        if shapes[0] is not None and len(shapes[0]) == 3 and not node.attributes.get_int("layout", 0):
            yield [shapes[0][1], *(shape[1] for shape in states)]


def _solved(node: ir.Node) -> tuple[Any, Any]:
    """(the dim that a Reshape was told as -1, what it is), (None, None) where they are more: the elements stay as many."""
    before, after = node.inputs[0].shape, node.outputs[0].shape  # type: ignore[union-attr]
    if before is None or after is None:
        return None, None
    left, right = list(before), list(after)
    for dim in after:
        twin = next((i for i, other in enumerate(left) if same_dim(other, dim)), None)
        if twin is not None:
            del left[twin], right[next(i for i, other in enumerate(right) if other is dim)]
    names, unknown = ([dim for dim in dims if not isinstance(dim, int)] for dims in (left, right))
    have, need = (math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (left, right))
    if len(unknown) != 1 or len(names) > 1 or not need or have % need:
        return None, None
    if names:
        return (unknown[0], names[0]) if have == need else (None, None)
    return unknown[0], have // need


def _aligned(node: ir.Node) -> Iterator[tuple[Any, list[Any]]]:
    """Each dim of a broadcasting node's output with the dims of its inputs that make it."""
    shapes = [value.shape if value is not None else None for value in node.inputs]
    out = node.outputs[0].shape
    if out is None or any(shape is None for shape in shapes):
        return
    for back in range(3 if node.op_type == "MatMul" else 1, len(out) + 1):
        yield out[-back], [shape[-back] for shape in shapes if len(shape) >= back]  # type: ignore[index,arg-type]


def _join_scores(scores: ir.Value, join: Any) -> None:
    path = _to_product(scores, SCORE_STEPS)
    if not path or any(value.shape is None or len(value.shape) != len(path[-1].shape or ()) for value in path):
        return
    for value in path[:-1]:
        for new, known in zip(value.shape, path[-1].shape, strict=True):  # type: ignore[arg-type]
            join(new, known)


def _to_product(value: ir.Value | None, steps: int) -> list[ir.Value]:
    """The values from masked scores to the product of q and k, [] where there is none."""
    node = value.producer() if value is not None else None
    if node is None or value is None:
        return []
    if node.op_type == "MatMul":
        return [value]
    if node.op_type not in BROADCASTS or not steps:
        return []
    for source in node.inputs:
        path = _to_product(source, steps - 1)
        if path:
            return [value, *path]
    return []
