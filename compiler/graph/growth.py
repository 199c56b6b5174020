"""How much a small file would become: functions that call functions, and nodes that make large values out of constants.

27 functions that call the next one twice are 2^27 nodes; a ConstantOfShape of [10^9] is 4 GB out of 200 bytes. Both are counted
before anything expands or computes them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..core import SourceError

MOST_NODES = 100_000  # after functions are expanded
# Numbers of one value by its fixed sizes (512 MB of float32), or as many as eight times the bytes of the file: weights in four
# bits are widened by nodes.
MOST_MADE = 2**27
MOST_RUN = 2**31  # numbers of one value that an input takes part in: sizes are fixed in many files, and batches are large
MOST_ROUNDS = 2**20  # of a Loop whose count is a constant, and whose condition never changes
SMALL = 128  # elements of an initializer that may say a size
Key = tuple[str, str]


def check_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Raises SourceError for functions that call themselves, and for calls that expand to too many nodes."""
    bodies: dict[Key, onnx.FunctionProto] = {}
    for function in proto.functions:
        if bodies.setdefault((function.domain, function.name), function) is not function and not function.overload:
            raise SourceError(
                f"{path}: function {function.name!r} of domain {function.domain!r} is there twice; names are unique"
            )
    if not bodies:
        return
    sizes = _expanded_sizes(bodies, path)
    total = sum(sizes.get(_key(node), 1) for node in all_nodes(proto.graph.node))
    if total > MOST_NODES:
        worst = max(bodies, key=lambda key: sizes[key])
        raise SourceError(
            f"{path}: its functions expand to {total:.3g} nodes (a call of {worst[1]!r} alone to {sizes[worst]:.3g}); "
            f"at most {MOST_NODES} are expanded"
        )


def _expanded_sizes(bodies: dict[Key, onnx.FunctionProto], path: Path) -> dict[Key, int]:
    """How many nodes a call of each function becomes. Without recursion: a chain of functions may be long."""
    calls = {key: [_key(node) for node in all_nodes(function.node)] for key, function in bodies.items()}
    sizes: dict[Key, int] = {}
    for root in calls:
        path_down, todo = set[Key](), [(root, False)]
        while todo:
            key, leaving = todo.pop()
            if leaving:
                sizes[key] = max(1, sum(sizes.get(each, 1) for each in calls[key]))
                path_down.discard(key)
            elif key not in sizes:
                if key in path_down:
                    raise SourceError(f"{path}: function {key[1]!r} of domain {key[0]!r} calls itself; ONNX has no recursion")
                path_down.add(key)
                todo.append((key, True))
                inner = dict.fromkeys(each for each in calls[key] if each in calls and each not in sizes)
                if loop := next((each for each in inner if each in path_down), None):
                    raise SourceError(f"{path}: function {loop[1]!r} of domain {loop[0]!r} calls itself; ONNX has no recursion")
                todo += [(each, False) for each in inner]
    return sizes


def check_made(proto: onnx.ModelProto, path: Path, size: int | None = None) -> None:
    """Raises SourceError for a node whose result is too large by what constants say, whatever the file writes beside it.

    `size`: bytes of the file and of those beside it, where they were read already.
    """
    size = size or path.stat().st_size + sum(file.stat().st_size for file in _beside(proto, path))
    constant, fed = max(MOST_MADE, 8 * size), _fed(proto)
    bare = _without_claims(proto)
    try:
        found = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # noqa: BLE001 - whatever onnx's C++ throws; onnx's checker names what is wrong with the graph, later
        found = bare
    makers = {name: node for node in all_nodes(found.graph.node) for name in node.output}
    for value in _values(found.graph):
        fixed = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0]
        allowed = max(constant, MOST_RUN) if value.name in fed else constant
        if math.prod(fixed) > allowed and value.name in makers:
            node = makers[value.name]
            raise SourceError(
                f"{path}: node {node.name!r} ({node.op_type}) makes {value.name!r} of the fixed sizes {fixed}, "
                f"{math.prod(fixed):.3g} numbers; at most {allowed:.3g} are computed for a file of {size} bytes"
            )
    _check_constants(proto, path, constant)
    _check_conditions(found.graph, path)


def _check_conditions(graph: onnx.GraphProto, path: Path) -> None:
    """A condition of any number of elements but one: ONNX Runtime reads the first of none there, which ends the process."""
    for scope, sizes in _scopes(graph, _sizes_of):
        for node in scope.node:
            if node.op_type not in ("If", "Loop") or node.domain not in ("", "ai.onnx"):
                continue
            read = [(name, sizes.get(name)) for name in node.input[: 2 if node.op_type == "Loop" else 1]]
            for body in (a.g for a in node.attribute if a.name == "body" and node.op_type == "Loop" and a.g.output):
                read.append((body.output[0].name, _sizes_of(body).get(body.output[0].name)))
            for name, found in read:
                if any(size not in (1, -1) for size in found or ()):
                    raise SourceError(
                        f"{path}: node {node.name!r} ({node.op_type}) takes {name!r} of the sizes {found} for its condition or "
                        "count; these are one number"
                    )


def _sizes_of(graph: onnx.GraphProto) -> dict[str, list[int] | None]:
    """The sizes of what a graph itself names, -1 for those that are free; None where nothing is known."""
    sizes: dict[str, list[int] | None] = {name: None for node in graph.node for name in node.output}
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.tensor_type.HasField("shape") or value.name not in sizes:
            sizes[value.name] = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in _dims(value)]
    return sizes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _scopes(
    graph: onnx.GraphProto, named: Callable[[onnx.GraphProto], Mapping[str, Any]]
) -> Iterator[tuple[onnx.GraphProto, Any]]:
    """Each graph with what `named` says of its names and of those around it: a name inside hides the same one outside."""
    todo: list[tuple[onnx.GraphProto, ChainMap[str, Any]]] = [(graph, ChainMap(dict(named(graph))))]
    while todo:
        scope, names = todo.pop()
        yield scope, names
        inner = [each for node in scope.node for a in node.attribute for each in (*([a.g] if a.HasField("g") else []), *a.graphs)]
        todo += [(each, names.new_child(dict(named(each)))) for each in inner]


def _dims(value: onnx.ValueInfoProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _fed(proto: onnx.ModelProto) -> set[str]:
    """The values that an input of the model takes part in; all others are the same at every call, and may be folded."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    fed = {value.name for value in proto.graph.input} - weights
    for node in proto.graph.node:  # in order: the checker refuses a file that has them in another
        inner = [each for each in all_nodes([node]) if each is not node]
        if fed.intersection(node.input) or any(fed.intersection(each.input) for each in inner):
            fed.update(node.output, *(each.output for each in inner))
    return fed


def _check_constants(proto: onnx.ModelProto, path: Path, allowed: int) -> None:
    """What onnx's inference does not count: ranges, and rounds of loops, both by their constants."""
    for node, numbers in ((each, found) for scope, found in _scopes(proto.graph, _numbers_of) for each in scope.node):
        _check_division(node, numbers, path)
        wanted = node.input[:1] if node.op_type == "Loop" else node.input[:3] if node.op_type == "Range" else ()
        if not wanted or any(numbers.get(name) is None for name in wanted):
            continue
        values = [float(array.reshape(-1)[0]) for name in wanted if (array := onnx.numpy_helper.to_array(numbers[name])).size]
        if len(values) == 3 and values[2] and (values[1] - values[0]) / values[2] > allowed:
            count, most, what = (values[1] - values[0]) / values[2], allowed, "numbers"
        elif len(values) == 1 and values[0] > MOST_ROUNDS and not _may_stop(node):
            count, most, what = values[0], MOST_ROUNDS, "rounds"
        else:
            continue
        raise SourceError(
            f"{path}: node {node.name!r} ({node.op_type}) makes {count:.3g} {what} by its constants; at most {most:.3g}"
        )


def _check_division(node: onnx.NodeProto, numbers: Mapping[str, onnx.TensorProto | None], path: Path) -> None:
    """The least number of a type by -1 has no answer in it, and ends the process that divides: ONNX Runtime does not look."""
    read = [numbers.get(name) for name in node.input] if node.op_type in ("Div", "Mod") else []
    if len(read) != 2 or read[0] is None or read[1] is None:
        return
    top, bottom = (onnx.numpy_helper.to_array(tensor) for tensor in (read[0], read[1]))
    if top.dtype.kind == "i" and bottom.dtype.kind == "i" and (top == np.iinfo(top.dtype).min).any() and (bottom == -1).any():
        least = np.iinfo(top.dtype).min
        raise SourceError(f"{path}: node {node.name!r} ({node.op_type}) divides {least} by -1, which {top.dtype} does not hold")


def _numbers_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto | None]:
    """The constants that a graph itself names, None for its other names."""
    found: dict[str, onnx.TensorProto | None] = {value.name: None for value in graph.input}
    found |= {name: None for node in graph.node for name in node.output}
    found |= {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")}
    return found | {tensor.name: tensor for tensor in _small(graph)}


def _may_stop(loop: onnx.NodeProto) -> bool:
    """Whether a Loop's body decides when it ends: torch writes `while` with 2^63 - 1 rounds at most."""
    body = next((attribute.g for attribute in loop.attribute if attribute.name == "body"), None)
    if body is None or not body.output or len(loop.input) < 2 or not loop.input[1]:
        return False
    made = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    return name in made and made[name].op_type != "Constant"


def _small(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from (
        t for t in graph.initializer if t.data_location != t.EXTERNAL and math.prod(t.dims) <= SMALL and t.data_type != t.STRING
    )


def _without_claims(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes with what is known of inputs and weights alone: a file may write any shape beside a value."""
    bare = onnx.ModelProto()
    bare.ir_version = proto.ir_version
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph = bare.graph
    graph.name = "bare"
    graph.node.extend(proto.graph.node)
    for node in all_nodes(graph.node):
        for inner in (a.g for a in node.attribute if a.HasField("g")):
            del inner.value_info[:]
            outputs = [value.name for value in inner.output]
            del inner.output[:]
            inner.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    graph.input.extend(proto.graph.input)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in proto.graph.output)
    kept = {tensor.name for tensor in _small(proto.graph)}
    given = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name in kept:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return bare


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.value_info, *graph.output)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _values(inner)


def _beside(proto: onnx.ModelProto, path: Path) -> set[Path]:
    names = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    return {path.parent / name for name in names} - {path}


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    todo = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                todo += inner.node


def _key(node: onnx.NodeProto) -> Key:
    return node.domain, node.op_type
