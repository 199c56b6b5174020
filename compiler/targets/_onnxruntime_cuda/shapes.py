"""Arithmetic on shapes: integers that come from Shape and constants alone. ONNX Runtime computes them on the CPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ops import Builder, constant

SHAPES = ("Shape", "Size")
CONTROL = frozenset({"If", "Loop", "Scan"})


def shape_values(graph: ir.Graph) -> set[ir.Value]:
    """The integers and booleans of a graph that follow from shapes and constants alone."""
    found: set[ir.Value] = set()
    for node in graph.all_nodes():
        given = [value for value in node.inputs if value is not None]
        known = node.op_type in SHAPES or all(value in found or value.const_value is not None for value in given)
        if known and node.op_type not in CONTROL:
            found.update(v for v in node.outputs if v.dtype is not None and (v.dtype.is_integer() or v.dtype == ir.DataType.BOOL))
    return found


def start_ranges_late(graph: ir.Graph) -> None:
    """Range(a, b, s) + n, n a number of shape arithmetic, as Range(a + n, b + n, s).

    A Range lies on the GPU and its three numbers do not: n, which a cache's length is, would be copied there each time.
    """
    shapes = shape_values(graph)
    for node in list(graph):
        if node.op_type != "Add" or node.domain:
            continue
        for counted, more in (node.inputs, node.inputs[::-1]):
            maker = counted.producer() if counted is not None else None
            if maker is None or maker.op_type != "Range" or maker.domain or more not in shapes or not _is_scalar(more):
                continue
            op = Builder()
            start, end, step = maker.inputs
            late = op.Range(op.Add(start, more), op.Add(end, more), step)
            _put(graph, node, op, late)
            break


def slice_first_rows(graph: ir.Graph) -> None:
    """Gather(table, Range(0, n, 1)) as the Slice that it is.

    ONNX Runtime makes that Slice itself, once it has placed the nodes, of numbers that it then copies to the GPU and back.
    """
    shapes = shape_values(graph)
    for node in list(graph):
        maker = node.inputs[1].producer() if node.op_type == "Gather" and not node.domain and node.inputs[1] is not None else None
        if maker is None or maker.op_type != "Range" or node.attributes.get_int("axis", 0) != 0:
            continue
        start, end, step = maker.inputs
        if _number(start) != 0 or _number(step) != 1 or end not in shapes or not _is_scalar(end):
            continue
        op = Builder()
        first = constant(op, [0], np.int64)
        late = op.Slice(node.inputs[0], first, op.Unsqueeze(end, first), first)
        _put(graph, node, op, late)


def _number(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().reshape(-1)[0])


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 0


def _put(graph: ir.Graph, node: ir.Node, op: Builder, late: ir.Value) -> None:
    """The new nodes in the place of a node, with names of their own and what is known of its output."""
    out = node.outputs[0]
    for index, new in enumerate(op.nodes):
        new.name, new.outputs[0].name = f"{node.name}/{new.op_type}_{index}", f"{out.name}/{new.op_type}_{index}"
        new.metadata_props.update(node.metadata_props)
        new.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        new.outputs[0].shape = ir.Shape([1] if new.op_type in ("Constant", "Unsqueeze") else [])
    late.type, late.shape = out.type, out.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], op.nodes, [out], [late])
