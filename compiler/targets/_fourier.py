"""A Fourier transform as products with its matrix, for compilers that have no DFT: FNet (Lee-Thorp et al. 2022, section 3.2).

    y = x F, F = cos(2 pi j k / n) - i sin(2 pi j k / n)

Complex numbers are kept as two values, the real and the imaginary part, from one transform to the next; what is not there or not
read costs nothing. A matrix of a known size is a constant; one of a dynamic size is computed where the activations are, once for
all layers. j k is taken modulo n as whole numbers, so that the angle is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..ops import Builder, constant, free_name, taken_names

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
AXIS_IS_INPUT = 20  # since which opset
Pair = tuple[ir.Value, ir.Value | None]  # the imaginary part is None where it is 0


def rewrite_fourier(model: ir.Model, lacks: Callable[[ir.Node], bool] = lambda node: True) -> bool:
    """In place: each DFT that a compiler `lacks`, forward, two-sided and of its axis's own length. Whether there was one."""
    rewrite = _Rewrite(model)
    found = [node for node in model.graph if node.op_type == "DFT" and not node.domain and lacks(node) and rewrite.takes(node)]
    for node in found:
        rewrite.transform(node)
    for node in found:
        rewrite.give(node)
    if found:
        RemoveUnusedNodesPass()(model)
    return bool(found)


class _Rewrite:
    def __init__(self, model: ir.Model) -> None:
        self.graph, self.opset, self.taken = model.graph, model.opset_imports[""], taken_names(model)
        self.pairs: dict[ir.Value, Pair] = {}
        self.tables: dict[object, tuple[ir.Value, ir.Value]] = {}
        self.placed: dict[ir.Node, tuple[ir.Node, Any]] = {}

    def takes(self, node: ir.Node) -> bool:
        x, length, axis = [*node.inputs, None, None][:3]
        plain = not node.attributes.get_int("inverse", 0) and not node.attributes.get_int("onesided", 0)
        known = x is not None and x.shape is not None and x.dtype == FLOAT and x.shape[-1] in (1, 2)
        return plain and known and length is None and (self.opset < AXIS_IS_INPUT or axis is None or _number(axis) is not None)

    def transform(self, node: ir.Node) -> None:
        """The two parts of a node's result, in front of it."""
        x = node.inputs[0]
        assert x is not None and x.shape is not None
        op, rank = Builder(), len(x.shape) - 1
        axis = self._axis(node) % (rank + 1)
        real, imaginary = self._parts(op, x)
        cos, sin = self._table(op, x, axis)

        def times(value: ir.Value, matrix: ir.Value) -> ir.Value:
            """Along the axis; both matrices are symmetric."""
            if axis == rank - 1:
                made = op.MatMul(value, matrix)
            elif axis == rank - 2:
                made = op.MatMul(matrix, value)
            else:
                perm = list(range(rank))
                perm[axis], perm[-1] = perm[-1], perm[axis]
                turned = _typed(op.Transpose(value, perm=perm), FLOAT, [value.shape[at] for at in perm])  # type: ignore[index]
                product = _typed(op.MatMul(turned, matrix), FLOAT, turned.shape)
                made = op.Transpose(product, perm=perm)
            return _typed(made, FLOAT, value.shape)

        def plus(first: ir.Value, second: ir.Value | None) -> ir.Value:
            return first if second is None else _typed(op.Add(first, second), FLOAT, first.shape)

        made = plus(times(real, cos), None if imaginary is None else times(imaginary, sin))
        turned = plus(_typed(op.Neg(times(real, sin)), FLOAT, real.shape), None if imaginary is None else times(imaginary, cos))
        self.pairs[node.outputs[0]] = made, turned
        self._place(node, op)

    def give(self, node: ir.Node) -> None:
        """Its readers get the part that they take, or both side by side; another transform has taken its own."""
        out = node.outputs[0]
        real, imaginary = self.pairs[out]
        assert imaginary is not None and out.shape is not None
        others = []
        for user, index in list(out.uses()):
            if user.op_type == "DFT" and user.outputs[0] in self.pairs:
                continue
            part = self._part_read(user, len(out.shape))
            if part is None:
                others.append((user, index))
            else:
                self._instead(user, (real, imaginary)[part])
        if not others and not out.is_graph_output():
            return
        op, last = Builder(), [len(out.shape) - 1]
        apart = [
            _typed(op.Unsqueeze(part, constant(op, last, np.int64)), FLOAT, [*out.shape.dims[:-1], 1])
            for part in (real, imaginary)
        ]
        both = _typed(op.Concat(*apart, axis=last[0]), FLOAT, out.shape)
        self._place(node, op)
        self._instead(node, both)

    def _instead(self, node: ir.Node, value: ir.Value) -> None:
        """A value for the readers of a node's output, under its name where that is the graph's."""
        out = node.outputs[0]
        if out.is_graph_output():
            op = Builder()
            named = _typed(op.Identity(value), FLOAT, value.shape)
            self._place(node, op)
            named.name, out.name = out.name, named.name
            value = named
        out.replace_all_uses_with(value, replace_graph_outputs=True)

    def _axis(self, node: ir.Node) -> int:
        if self.opset < AXIS_IS_INPUT:
            return node.attributes.get_int("axis", 1)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        found = -2 if given is None else _number(given)
        assert found is not None
        return found

    def _parts(self, op: Any, x: ir.Value) -> Pair:
        if x in self.pairs:
            return self.pairs[x]
        assert x.shape is not None
        maker, last, shape = x.producer(), len(x.shape) - 1, x.shape.dims[:-1]
        if (
            maker is not None
            and maker.op_type == "Concat"
            and maker.attributes["axis"].as_int() in (-1, last)
            and len(maker.inputs) == 2
        ):
            real, imaginary = maker.inputs
            assert real is not None and imaginary is not None
            return _flat(op, real, shape), None if _is_zero(imaginary) else _flat(op, imaginary, shape)
        if x.shape[-1] == 1:
            return _flat(op, x, shape), None
        parts = [_typed(op.Gather(x, constant(op, at, np.int64), axis=last), FLOAT, shape) for at in (0, 1)]
        return parts[0], parts[1]

    def _table(self, op: Any, x: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        """[n, n] cosines and sines."""
        assert x.shape is not None
        size = x.shape[axis]
        key = size if isinstance(size, int) else size.value or (x, axis)
        if key not in self.tables:
            self.tables[key] = _known(op, size) if isinstance(size, int) else _computed(op, x, axis)
        return self.tables[key]

    def _part_read(self, user: ir.Node, rank: int) -> int | None:
        """0 or 1 where a node takes one part by its number."""
        if user.op_type != "Gather" or user.attributes.get_int("axis", 0) not in (-1, rank - 1):
            return None
        index = user.inputs[1]
        scalar = index is not None and index.shape is not None and len(index.shape) == 0
        number = _number(index) if scalar else None
        return number if number in (0, 1) else None

    def _place(self, node: ir.Node, op: Builder) -> None:
        for new in op.nodes:
            new.name = free_name(f"{node.name}/{new.op_type}", self.taken)
            new.metadata_props.update(node.metadata_props)
            if new.op_type == "Constant":
                tensor = new.attributes["value"].as_tensor()
                _typed(new.outputs[0], tensor.dtype, tensor.shape.numpy())
            for value in new.outputs:
                value.name = free_name(f"{node.outputs[0].name}/{new.op_type}", self.taken)
        self.graph.insert_before(node, op.nodes)


def _known(op: Any, size: int) -> tuple[ir.Value, ir.Value]:
    counted = np.arange(size, dtype=np.int64)
    angle = 2 * np.pi / size * (np.outer(counted, counted) % size)
    cos, sin = (constant(op, values.astype(np.float32)) for values in (np.cos(angle), np.sin(angle)))
    return _typed(cos, FLOAT, [size, size]), _typed(sin, FLOAT, [size, size])


def _computed(op: Any, x: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Only the length itself is arithmetic on shapes: the modulus is read back from the numbers counted."""
    assert x.shape is not None
    size = x.shape[axis]
    length = _typed(op.Squeeze(_typed(op.Shape(x, start=axis, end=axis + 1), INT64, [1]), constant(op, [0], np.int64)), INT64, [])
    counted = _typed(op.Range(constant(op, 0, np.int64), length, constant(op, 1, np.int64)), INT64, [size])
    columns, rows = (
        _typed(op.Unsqueeze(counted, constant(op, [at], np.int64)), INT64, s) for at, s in ((0, [1, size]), (1, [size, 1]))
    )
    largest = _typed(op.ReduceMax(columns, keepdims=1), INT64, [1, 1])
    modulus = _typed(op.Add(largest, constant(op, 1, np.int64)), INT64, [1, 1])
    product = _typed(op.Mul(rows, columns), INT64, [size, size])
    turns = _typed(op.Cast(_typed(op.Mod(product, modulus), INT64, [size, size]), to=FLOAT), FLOAT, [size, size])
    step = _typed(op.Div(constant(op, 2 * np.pi), _typed(op.Cast(modulus, to=FLOAT), FLOAT, [1, 1])), FLOAT, [1, 1])
    angle = _typed(op.Mul(turns, step), FLOAT, [size, size])
    return _typed(op.Cos(angle), FLOAT, [size, size]), _typed(op.Sin(angle), FLOAT, [size, size])


def _number(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().reshape(-1)[0])


def _typed(value: ir.Value, dtype: ir.DataType, shape: Any) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return value


def _flat(op: Any, value: ir.Value, shape: Any) -> ir.Value:
    """[..., 1] without its last axis."""
    maker = value.producer()
    if maker is not None and maker.op_type == "Unsqueeze" and _number(maker.inputs[1]) in (-1, len(shape)):
        assert maker.inputs[0] is not None
        return maker.inputs[0]
    return _typed(op.Squeeze(value, constant(op, [len(shape)], np.int64)), FLOAT, shape)


def _is_zero(value: ir.Value | None) -> bool:
    maker = value.producer() if value is not None else None
    spread = maker.inputs[0] if maker is not None and maker.op_type == "Expand" else value
    tensor = None if spread is None else ir.convenience.get_const_tensor(spread)
    if tensor is None:
        return maker is not None and maker.op_type == "ConstantOfShape" and "value" not in maker.attributes
    return not tensor.numpy().any()
