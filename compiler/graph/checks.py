"""What an .onnx file says of itself, held against itself before anything is allocated, expanded or computed from it.

Works on the message as protobuf reads it, where weights are bytes and nothing has been made of a size yet. (What nodes would make
out of constants, and functions out of calls of functions, is in `growth.py`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import onnx

from ..core import SourceError
from .growth import all_nodes, check_functions

MOST_ELEMENTS = 2**31  # of one row of an input, by its fixed sizes
DEEPEST = 16  # graphs inside graphs; exporters write three or four
# Texts that nothing goes by.
KINDS = ("Model", "Graph", "Node", "Attribute", "Tensor", "ValueInfo", "Function")
DESCRIBING = {
    *(f"onnx.{kind}Proto.doc_string" for kind in KINDS), "onnx.ModelProto.producer_name", "onnx.ModelProto.producer_version",
    "onnx.ModelProto.domain", "onnx.GraphProto.name", "onnx.NodeProto.name",
    "onnx.StringStringEntryProto.key", "onnx.StringStringEntryProto.value",
}  # fmt: skip
TYPES = {number: name for name, number in onnx.TensorProto.DataType.items() if name != "UNDEFINED"}
# The field that holds a type's numbers where they are not raw; int32_data for all the others.
FIELDS = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"), **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"), "INT64": "int64_data", "STRING": "string_data",
}  # fmt: skip


def check_message(proto: onnx.ModelProto, path: Path) -> None:
    """Raises SourceError naming the node, the tensor or the import, what was found, and what is allowed."""
    _check_texts(proto, path)
    _check_opsets(proto, path)
    for value in proto.graph.input:
        _check_value(value, path)
    _check_graph(proto.graph, path, "the graph", frozenset(), 0)
    for function in proto.functions:
        for tensor in _attribute_tensors(function.node):
            check_tensor(tensor, path)
        _check_edges(function.node, [*function.input], [*function.output], path, f"function {function.name!r}", frozenset())
    check_functions(proto, path)
    _check_attributes(proto, path)


def _fail(path: Path, said: str) -> NoReturn:
    raise SourceError(f"{path}: {said}")


def _check_texts(proto: onnx.ModelProto, path: Path) -> None:
    """protobuf hands over as bytes what is no UTF-8. What only describes is written in UTF-8, with marks for what cannot be read
    (metadata in other encodings is found in real files); a name that edges go by must be what it is."""
    todo: list[Any] = [proto]
    while todo:
        message = todo.pop()
        for field, value in message.ListFields():
            several = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
            if field.message_type is not None:
                todo += several
            elif field.type == field.TYPE_STRING and (bad := next((each for each in several if isinstance(each, bytes)), None)):
                if field.full_name not in DESCRIBING:
                    _fail(path, f"{field.full_name} is {bad[:40]!r}, which is no UTF-8; names are UTF-8; is the file damaged?")
                setattr(message, field.name, bad.decode("utf-8", "replace"))


def _check_opsets(proto: onnx.ModelProto, path: Path) -> None:
    """Of ONNX's own operators: a domain of others counts as it likes. (A domain named twice is read by ONNX Runtime as well.)"""
    newest = onnx.defs.onnx_opset_version()
    if not proto.opset_import:
        _fail(path, "it has no opset_import, so nothing says what its operators mean; export it again")
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            known = f"onnx {onnx.__version__} knows 1 to {newest}"
            _fail(
                path, f"opset {entry.version} of domain 'ai.onnx'; {known}: export it with one of these, or install a newer onnx"
            )


def _check_attributes(proto: onnx.ModelProto, path: Path) -> None:
    """Each of the type that its operator gives it: passes ask for a number where a number must be."""
    version = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}.get("ai.onnx", 0)
    bodies = (proto.graph.node, *(function.node for function in proto.functions))
    schemas: dict[str, Any] = {}
    for node in (each for nodes in bodies for each in all_nodes(nodes) if each.domain in ("", "ai.onnx")):
        if node.op_type not in schemas:
            known = version and onnx.defs.has(node.op_type, max_inclusive_version=version)
            schemas[node.op_type] = onnx.defs.get_schema(node.op_type, version).attributes if known else {}
        for attribute in node.attribute:
            asked = schemas[node.op_type].get(attribute.name)
            if asked is None or attribute.ref_attr_name or int(asked.type) == attribute.type:
                continue
            found = onnx.AttributeProto.AttributeType.Name(attribute.type)
            wanted = onnx.AttributeProto.AttributeType.Name(int(asked.type))
            _fail(path, f"{_called(node)}: its attribute {attribute.name!r} has the type {found}; {wanted} is what it takes")


def _check_value(value: onnx.ValueInfoProto, path: Path) -> None:
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        _fail(path, f"input {value.name!r} is a {str(kind).removesuffix('_type').replace('_', ' ')}; bertc takes plain tensors")
    tensor = value.type.tensor_type
    if kind and tensor.elem_type not in TYPES:
        _fail(path, f"input {value.name!r} has the element type {tensor.elem_type}, which ONNX does not define")
    fixed = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value") and dim.dim_value > 0]
    if math.prod(fixed) > MOST_ELEMENTS:
        _fail(path, f"input {value.name!r} has the fixed sizes {fixed}, {math.prod(fixed)} numbers; at most {MOST_ELEMENTS}")


def _check_graph(graph: onnx.GraphProto, path: Path, what: str, outer: frozenset[str], depth: int) -> None:
    if depth > DEEPEST:
        _fail(path, f"{what} lies {depth} graphs deep; at most {DEEPEST} are read")
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        _fail(path, f"initializer {name!r} is sparse, which onnx_ir does not read; write it as a dense tensor")
    for tensor in graph.initializer:
        check_tensor(tensor, path)
    for tensor in _attribute_tensors(graph.node):
        check_tensor(tensor, path)
    inputs, weights = [value.name for value in graph.input], [tensor.name for tensor in graph.initializer]
    for kind, names in (("input", inputs), ("initializer", weights)):
        if twice := _first_twice(names):
            _fail(path, f"{what} has the {kind} {twice!r} twice; names are given once")
    given = list(dict.fromkeys([*inputs, *weights]))
    visible = _check_edges(graph.node, given, [value.name for value in graph.output], path, what, outer)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_graph(inner, path, f"{attribute.name} of {_called(node)}", visible, depth + 1)


def _check_edges(
    nodes: Iterable[onnx.NodeProto], given: list[str], outputs: list[str], path: Path, what: str, outer: frozenset[str]
) -> frozenset[str]:
    """The names that are there, of nodes, weights and the graphs around. SourceError for one made twice, never, or of itself."""
    nodes = list(nodes)
    made: dict[str, int] = dict.fromkeys(given, -1)
    for at, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in made:
                by = _called(nodes[made[name]]) if made[name] >= 0 else "an input or an initializer"
                _fail(path, f"{what}: {name!r} is made twice, by {by} and by {_called(node)}; each value is made once")
            made[name] = at
    for node in nodes:
        missing = next((name for name in node.input if name and name not in made and name not in outer), None)
        if missing is not None:
            _fail(path, f"{what}: {_called(node)} reads {missing!r}, which nothing makes")
    lost = next((name for name in outputs if name not in made and name not in outer), None)
    if lost is not None:
        _fail(path, f"{what}: the output {lost!r} is made by nothing")
    _check_cycle(nodes, made, path, what)
    return outer | made.keys()


def _check_cycle(nodes: list[onnx.NodeProto], made: dict[str, int], path: Path, what: str) -> None:
    """In order of their edges, as far as that goes; what is left over reads, in the end, its own result."""
    reads = [{made[name] for name in node.input if made.get(name, -1) >= 0} for node in nodes]
    if all(before < at for at, each in enumerate(reads) for before in each):
        return
    readers: list[list[int]] = [[] for _ in nodes]
    for at, each in enumerate(reads):
        for before in each:
            readers[before].append(at)
    left = [len(each) for each in reads]
    ready = [at for at, count in enumerate(left) if not count]
    done = 0
    while ready:
        done += 1
        for reader in readers[ready.pop()]:
            left[reader] -= 1
            if not left[reader]:
                ready.append(reader)
    if done < len(nodes):
        stuck = next(at for at, count in enumerate(left) if count)
        _fail(path, f"{what}: {_called(nodes[stuck])} reads a value that is made of its own result (a cycle)")


def check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """Its type, its sizes, and as many bytes or numbers as these need; external data is held against its file elsewhere."""
    import onnx_ir as ir

    named = f"tensor {tensor.name!r}"
    if tensor.data_type not in TYPES:
        _fail(path, f"{named} has the data type {tensor.data_type}, which ONNX does not define")
    dims = list(tensor.dims)
    if any(size < 0 for size in dims):
        _fail(path, f"{named} has the sizes {dims}; sizes are 0 or more")
    if tensor.HasField("segment"):
        _fail(path, f"{named} is a segment of a larger one, which no runtime reads; write it whole")
    if tensor.data_location == tensor.EXTERNAL:
        return
    count, kind = math.prod(dims), TYPES[tensor.data_type]
    bits = 0 if kind == "STRING" else ir.DataType(tensor.data_type).bitwidth
    shown = f"{named} is {kind} {dims}"
    if tensor.HasField("raw_data"):
        needed = (count * bits + 7) // 8
        if kind == "STRING" or len(tensor.raw_data) != needed:
            _fail(path, f"{shown}, which needs {needed} bytes; it holds {len(tensor.raw_data)}; is the file complete?")
        return
    found = len(getattr(tensor, FIELDS.get(kind, "int32_data")))
    allowed = {count * 2} if kind.startswith("COMPLEX") else {count}
    if 0 < bits < 8:
        allowed |= {(count * bits + 7) // 8, (count * bits + 31) // 32}
    if found not in allowed:
        _fail(path, f"{shown}, which needs {count} numbers; it holds {found}; is the file complete?")


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _first_twice(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _called(node: Any) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"the {node.op_type} that makes {list(node.output)[:2]}"
