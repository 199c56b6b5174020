"""Weights stored in few bits, with the arithmetic that makes them floats, as the float32 weights they stand for.

Other tools write int8 weights as Cast and Mul, as DequantizeLinear, or as a chain of both; nodes that read constants alone are
computed once, by ONNX Runtime, whose result the source itself has. A lookup in a stored table is computed as a lookup in the
float table. (Formats with an operator of their own, MatMulNBits and its kin, are expanded in `contrib/weights.py`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..core import BuildFailed
from ..runtime import FLOAT, open_session, reference_options

DType = ir.DataType
INTEGERS = (DType.INT8, DType.UINT8, DType.INT4, DType.UINT4, DType.INT2, DType.UINT2, DType.INT16, DType.UINT16)
FLOATS = (DType.FLOAT8E4M3FN, DType.FLOAT8E4M3FNUZ, DType.FLOAT8E5M2, DType.FLOAT8E5M2FNUZ, DType.FLOAT4E2M1)
STORED = frozenset([*INTEGERS, *FLOATS])
SMALL = 64  # elements; fewer are sizes and scales, which folding finds by itself
DEQUANTISERS = frozenset({("", "DequantizeLinear"), ("com.microsoft", "DequantizeLinear")})
RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split())


@dataclasses.dataclass(frozen=True)
class Stored:
    """Constants of a model by kind: every one, and those that come of weights in few bits."""

    constant: frozenset[ir.Value]
    low: frozenset[ir.Value]


def fold_stored_weights(model: ir.Model) -> list[str]:
    """Replace in place what weights in few bits become by its float32 numbers; returns notes."""
    moved = _lookups_last(model)
    found = find_stored(model)
    before = sum(_stored_bytes(value) for value in model.graph.initializers.values() if value in found.low)
    ends = list(_ends(found))
    for value in ends:
        fold_value(model, value)
    if not ends:
        return []
    after = sum(4 * (v.const_value.size if v.const_value is not None else 0) for v in ends)
    _drop_dead(model)
    tables = f" ({moved} of them tables of lookups)" if moved else ""
    return [
        f"{len(ends)} weights stored in few bits{tables} are float32 now, as their scales say: "
        f"{before / 2**20:.1f} MiB become {after / 2**20:.1f}; --int8 quantises them again"
    ]


def stored_constants(model: ir.Model) -> frozenset[ir.Value]:
    """Every constant of a model."""
    return find_stored(model).constant


def find_stored(model: ir.Model) -> Stored:
    """The constants of a model: initializers, and what nodes make of constants alone."""
    constant: set[ir.Value] = set()
    low: set[ir.Value] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.is_graph_input() or value.const_value is None:
                continue
            constant.add(value)
            if value.const_value.dtype in STORED and value.const_value.size > SMALL:
                low.add(value)
    for node in model.graph.all_nodes():
        if not _is_fixed(node, constant):
            continue
        constant |= set(node.outputs)
        dequantised = (node.domain, node.op_type) in DEQUANTISERS and _size(node.inputs[0]) > 1
        if dequantised or any(value in low for value in node.inputs) or _holds_stored(node):
            low |= set(node.outputs)
    return Stored(frozenset(constant), frozenset(low))


def _is_fixed(node: ir.Node, constant: set[ir.Value]) -> bool:
    subgraphs = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return not subgraphs and node.op_type not in RANDOM and all(value is None or value in constant for value in node.inputs)


def _holds_stored(node: ir.Node) -> bool:
    tensors = [a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
    return any(tensor.dtype in STORED and tensor.size > SMALL for tensor in tensors)


def _size(value: ir.Value | None) -> int:
    tensor = None if value is None else value.const_value
    return 0 if tensor is None else tensor.size


def _stored_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _ends(found: Stored) -> Iterator[ir.Value]:
    """Float constants made of stored weights that something not constant reads."""
    for value in sorted(found.low, key=lambda v: str(v.name)):
        node = value.producer()
        if node is None or not _is_float(value, node):
            continue
        readers = value.consumers()
        fixed = [all(made in found.constant for made in reader.outputs) for reader in readers]
        if value.is_graph_output() or not all(fixed) or not readers:
            yield value


def _is_float(value: ir.Value, node: ir.Node) -> bool:
    if (node.domain, node.op_type) in DEQUANTISERS:
        return True
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 0) == int(FLOAT)
    if value.dtype is not None:
        return value.dtype == FLOAT
    return node.op_type not in ("Constant", "Shape", "Size")


def fold_value(model: ir.Model, value: ir.Value) -> None:
    """Compute one constant, and let its readers read the result under its name."""
    array = _computed(model, value)
    if array.dtype != np.float32:
        return
    node = value.producer()
    assert node is not None
    name, value.name = value.name, f"{value.name}.stored"
    weight = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
    model.graph.register_initializer(weight)
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = weight
    value.replace_all_uses_with(weight)
    value.const_value, value.type, value.shape = weight.const_value, weight.type, weight.shape  # for who asks after it here


def _computed(model: ir.Model, value: ir.Value) -> np.ndarray:
    """By ONNX Runtime, of the nodes that make it alone. Raises BuildFailed where it refuses them."""
    nodes, read = _behind(value)
    names = {each: f"v{index}" for index, each in enumerate([*read, *(v for node in nodes for v in node.outputs)])}
    inner = {each: ir.Value(name=name) for each, name in names.items()}
    copies = []
    for node in nodes:
        given = [None if v is None else inner[v] for v in node.inputs]
        copies.append(
            ir.Node(node.domain, node.op_type, given, list(node.attributes.values()), outputs=[inner[v] for v in node.outputs])
        )
    for each in read:
        inner[each].const_value = ir.tensor(each.const_value.numpy(), dtype=each.const_value.dtype, name=names[each])  # type: ignore[union-attr]
    result = inner[value]
    result.type = ir.TensorType(FLOAT)
    graph = ir.Graph(
        [], [result], nodes=copies, initializers=[inner[v] for v in read], name="stored", opset_imports=dict(model.opset_imports)
    )
    alone = ir.Model(graph, ir_version=max(model.ir_version or 8, 8))
    try:
        session = open_session(ir.to_proto(alone).SerializeToString(), reference_options())
        return np.asarray(session.run(None, {})[0])
    except BuildFailed as why:
        raise BuildFailed(f"the stored weight {value.name!r} cannot be computed: {why}") from why


def _behind(value: ir.Value) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that make a constant, producers first, and the initializers they read."""
    order: dict[ir.Node, None] = {}
    read: dict[ir.Value, None] = {}

    def visit(each: ir.Value) -> None:
        node = each.producer()
        if node is None or each.const_value is not None:
            read[each] = None
            return
        if node in order:
            return
        for given in node.inputs:
            if given is not None:
                visit(given)
        order[node] = None

    visit(value)
    return list(order), list(read)


def _drop_dead(model: ir.Model) -> None:
    """What only made the folded weights."""
    for graph in model.graphs():
        for node in reversed(list(graph)):
            if node.outputs and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


# ---- lookups ---------------------------------------------------------------------------------------------------------


def _lookups_last(model: ir.Model) -> int:
    """Gather(table, ids) -> Cast or DequantizeLinear by one scale: the same on the whole table, then Gather. Returns how many."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Gather" or node.domain != "" or not _is_stored_table(node.inputs[0]):
            continue
        readers = node.outputs[0].consumers()
        if len(readers) == 1 and not node.outputs[0].is_graph_output() and _is_elementwise(readers[0]):
            _swap(node, readers[0])
            count += 1
    for node in list(model.graph.all_nodes()):
        _scale_rows(node)
    return count


def _is_stored_table(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.dtype in STORED and tensor.size > SMALL


def _is_elementwise(node: ir.Node) -> bool:
    if node.op_type == "Cast" and node.domain == "":
        return node.attributes.get_int("to", 0) == int(FLOAT)
    return (node.domain, node.op_type) in DEQUANTISERS and all(_size(v) == 1 for v in node.inputs[1:] if v is not None)


def _swap(gather: ir.Node, reader: ir.Node) -> None:
    """Gather then reader: reader on the table, then Gather."""
    graph, table = gather.graph, gather.inputs[0]
    assert graph is not None and table is not None and table.const_value is not None
    wide = ir.Node(
        reader.domain, reader.op_type, [table, *reader.inputs[1:]], list(reader.attributes.values()), name=f"{reader.name}.table"
    )
    wide.outputs[0].name = f"{table.name}.wide"
    wide.outputs[0].type, wide.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape(table.const_value.shape.numpy())
    graph.insert_before(gather, wide)
    gather.replace_input_with(0, wide.outputs[0])
    made, result = gather.outputs[0], reader.outputs[0]
    made.type, made.shape = ir.TensorType(FLOAT), result.shape
    for index, output in enumerate(graph.outputs if isinstance(graph, ir.Graph) else ()):
        if output is result:
            made.name, result.name = result.name, f"{result.name}.was"
            graph.outputs[index] = made
    result.replace_all_uses_with(made)
    reader.graph.remove(reader, safe=True)  # type: ignore[union-attr]


def _scale_rows(node: ir.Node) -> None:
    """Gather(table, ids) * Gather(scales, ids), both constant: one lookup in the scaled table."""
    gathers = [value.producer() if value is not None else None for value in node.inputs]
    if node.op_type != "Mul" or len(gathers) != 2 or not all(g is not None and g.op_type == "Gather" for g in gathers):
        return
    first, second = gathers
    assert first is not None and second is not None and node.graph is not None
    same = first.inputs[1] is second.inputs[1] and all(g.attributes.get_int("axis", 0) == 0 for g in (first, second))
    tables = [first.inputs[0], second.inputs[0]]
    made = [table.producer() for table in tables if table is not None]
    ranks = [len(table.shape) if table is not None and table.shape is not None else -1 for table in tables]
    if not same or not any(n is not None and n.name is not None and n.name.endswith(".table") for n in made):
        return
    if ranks[0] != ranks[1] or any(
        n is None and t is not None and t.const_value is None for n, t in zip(made, tables, strict=True)
    ):
        return
    scaled = ir.Node("", "Mul", tables, name=f"{node.name}.table")
    scaled.outputs[0].name, scaled.outputs[0].type = f"{node.outputs[0].name}.table", ir.TensorType(FLOAT)
    lookup = ir.Node("", "Gather", [scaled.outputs[0], first.inputs[1]], [ir.AttrInt64("axis", 0)], name=f"{node.name}.lookup")
    lookup.outputs[0].name = f"{node.outputs[0].name}.lookup"
    lookup.outputs[0].type, lookup.outputs[0].shape = ir.TensorType(FLOAT), node.outputs[0].shape
    if node.outputs[0].is_graph_output():
        return
    node.graph.insert_before(node, [scaled, lookup])
    node.outputs[0].replace_all_uses_with(lookup.outputs[0])
    node.graph.remove(node, safe=True)
