"""A few nodes of a graph as a model of their own, whose inputs are everything that comes from outside, weights too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir


class Refused(Exception):
    """Why something cannot be proven, in a sentence."""


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value)


def outer_values(nodes: Sequence[ir.Node]) -> dict[ir.Value, None]:
    """The values that some nodes read and do not make, in order. Refused for nodes with subgraphs, which may read anything."""
    made = {value for node in nodes for value in node.outputs}
    for node in nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise Refused(f"node {node.name!r} ({node.op_type}) holds a subgraph")
    return dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in made)


def extend_match(nodes: Sequence[ir.Node], read: Mapping[ir.Value, None]) -> list[ir.Node]:
    """The matched nodes, in order, with what stands between them and a value that only the new node reads, and with what
    computes shapes, scalars and the order of places for them: numbers made up for those would fit nothing."""
    found = dict.fromkeys(nodes)
    wanted = {value for value in read if constant_of(value) is None} - set(outer_values(nodes))
    todo = list(outer_values(nodes))
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or node in found or value in read or constant_of(value) is not None:
            continue
        if _is_size(value) or (wanted and _reaches(value, wanted)):
            found[node] = None
            todo += [v for v in node.inputs if v is not None]
        elif _is_grid(value):
            found |= dict.fromkeys(_of_sizes(value))
    return ordered(found)


def _is_size(value: ir.Value) -> bool:
    integer = value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    return integer and value.shape is not None and len(value.shape) <= 1


def _is_grid(value: ir.Value) -> bool:
    """Truth values, or indices of rank 3 or more: those of rank 2 are ids and positions, which may be any."""
    if value.dtype is None or value.dtype.is_floating_point():
        return False
    return value.dtype == ir.DataType.BOOL or (value.shape is not None and len(value.shape) > 2)


def _of_sizes(value: ir.Value) -> list[ir.Node]:
    """The nodes that make a value of sizes and constants alone (the order of queries and keys), [] where it is made of more."""
    nodes: dict[ir.Node, None] = {}
    todo = [value]
    while todo:
        each = todo.pop()
        node = each.producer()
        if node in nodes or constant_of(each) is not None:
            continue
        if node is None:
            return []
        nodes[node] = None
        todo += [v for v in node.inputs if v is not None and node.op_type != "Shape"]
    return list(nodes)


def _reaches(value: ir.Value, wanted: set[ir.Value]) -> bool:
    todo, seen = [value], set()
    while todo:
        node = todo.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(v in wanted for v in node.inputs):
            return True
        todo += [v for v in node.inputs if v is not None]
    return False


def ordered(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Producers before their readers."""
    left, order = set(nodes), list[ir.Node]()

    def visit(node: ir.Node) -> None:
        left.discard(node)
        for value in node.inputs:
            if value is not None and value.producer() in left:
                visit(value.producer())  # type: ignore[arg-type]
        order.append(node)

    for node in nodes:
        if node in left:
            visit(node)
    return order


def model_from_nodes(
    nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], opsets: dict[str, int], ir_version: int
) -> tuple[ir.Model, list[ir.Value]]:
    """Copies of the nodes as a model of their own, and the outside values that are its inputs, in its order.

    The model's inputs keep shape, type and constant, so that a lowering may read a weight.
    """
    read = list(outer_values(nodes))
    inner: dict[ir.Value | None, ir.Value | None] = {None: None}
    for value in read:
        fixed = constant_of(value)
        kind = value.type or (ir.TensorType(fixed.dtype) if fixed is not None else None)
        shape = value.shape if value.shape is not None else (ir.Shape(fixed.shape.numpy()) if fixed is not None else None)
        if kind is None or shape is None:
            raise Refused(f"the type or rank of {value.name!r} is unknown; run onnx.shape_inference on the file first")
        inner[value] = ir.Value(name=value.name, type=kind, shape=ir.Shape(shape), const_value=fixed)
    copies = []
    for node in ordered(nodes):
        given, attributes = [inner[v] for v in node.inputs], list(node.attributes.values())
        copy = ir.Node(
            node.domain, node.op_type, given, attributes, overload=node.overload, num_outputs=len(node.outputs), name=node.op_type
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            inner[old], new.name, new.type, new.shape = new, f"{len(inner)}", old.type, old.shape
        copies.append(copy)
    made = [inner.get(value) for value in outputs]
    if any(value is None or value.producer() is None for value in made):
        raise Refused("an output is an input or a weight of the subgraph, not the result of a node")
    graph = ir.Graph([inner[v] for v in read], made, nodes=copies, opset_imports=opsets, name="proof")  # type: ignore[misc,arg-type]
    return ir.Model(graph, ir_version=ir_version), read
