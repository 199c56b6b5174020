"""Golden graphs: an exported ONNX file as text with its weights left out, drawn again, seeded, when it is read.

Every node, attribute, name and known shape stays, and every constant that is small or of few values (scalars, shapes, masks,
tables of integers), which is what a rule looks at. Of a weight its type, shape, mean and spread are kept. What ONNX text cannot
say stands in comment lines at its head: the versions of the tools, the modules that the exporter noted at the nodes, the weights.
Nothing here needs torch.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bertc.core.errors import BertcError
from bertc.core.profiles import Dim
from bertc.fusions import engine as fuse
from bertc.fusions import families
from bertc.fusions.engine import Fused
from bertc.graph.model import Graph
from bertc.graph.provenance import module_path
from bertc.source import onnx_file as onnx_source

from . import zoo

FOLDER = Path("tests/golden/families")
COUNTS = "counts.json"
SCOPES = "pkg.torch.onnx.name_scopes"
SMALL, FEW = 32, 16  # a float tensor of more elements than the first and more values than the second is a weight

DECLARED = re.compile(r", (?=(?:u?int\d+|float\d*|bfloat16|double|bool|string)[ \[])")  # one value a line


def path_of(name: str, exporter: str) -> Path:
    """Where a golden stands: TorchScript's spell every shape out in many nodes, and are compressed."""
    return FOLDER / f"{name}.{exporter}.onnxtxt{'.gz' if exporter.startswith('torchscript') else ''}"


def kept(name: str, exported: Sequence[str]) -> list[str]:
    """The exporters of which a model's golden is kept, of those that export it: enough that every spelling is there."""
    row = zoo.ROWS[name]
    if name in zoo.TABLE_ONLY:
        return []
    if name in zoo.EVERY_EXPORTER:
        return list(exported)
    first = [exporter for exporter in exported if exporter.startswith("dynamo")][:1] or list(exported[:1])
    old = [e for e in exported if e == "torchscript-eager" and zoo.family(name) in families.FAMILIES and not row.is_head]
    return [*first, *old]


def write(source: Path, path: Path, versions: Mapping[str, str], padding: int) -> None:
    """Write the golden of an exported file. Raises ValueError where the text would not read back as the same graph."""
    proto = onnx.load(source)
    _plain(proto)
    weights = [tensor for tensor in proto.graph.initializer if _is_weight(numpy_helper.to_array(tensor))]
    head = [*(f"tool {tool} {version}" for tool, version in versions.items()), f"padding {padding}"]
    head += list(_modules(proto)) + list(_drawn(weights))
    _forget(proto, {tensor.name for tensor in weights})
    text = "".join(f"# {line}\n" for line in head) + DECLARED.sub(",\n    ", onnx.printer.to_text(proto))
    again = onnx.parser.parse_model(text)
    _plain(again)
    for name in ("node", "initializer", "input", "output", "value_info"):
        if _bytes(getattr(proto.graph, name)) != _bytes(getattr(again.graph, name)):
            raise ValueError(f"{source}: the {name}s do not read back from text")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def text_of(path: Path) -> str:
    """The text of a golden, compressed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def name_of(path: Path) -> str:
    """`bert.dynamo-sdpa`."""
    return path.name.partition(".onnxtxt")[0]


def versions(path: Path) -> dict[str, str]:
    """The tools that made a golden, by name."""
    return dict(line.split()[1:] for line in _head(text_of(path)) if line.startswith("tool "))


def padding(path: Path) -> int:
    """The id that the model takes for padding."""
    return next(int(line.split()[1]) for line in _head(text_of(path)) if line.startswith("padding "))


def inputs(proto: onnx.ModelProto) -> dict[str, zoo.Input]:
    """What a golden is fed."""
    found = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        dims = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
        found[value.name] = zoo.Input(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)
    return found


def read(path: Path) -> onnx.ModelProto:
    """The graph of a golden with weights drawn again; equal ones are equal, and every weight hangs on its name alone."""
    text = text_of(path)
    proto = onnx.parser.parse_model(text)
    for line in _head(text):
        kind, *words = line.split(" ")
        if kind == "weight":
            proto.graph.initializer.append(_draw(*words))
        elif kind == "same":
            twin = next(t for t in proto.graph.initializer if t.name == words[1])
            proto.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(twin), words[0]))
    homes = {node: line.split(" ")[1] for line in _head(text) if line.startswith("at ") for node in line.split(" ")[2:]}
    for node in proto.graph.node:
        if node.name in homes:
            node.metadata_props.add(key=SCOPES, value=str(["", homes[node.name], node.name]))
    return proto


def open_graph(path: Path) -> tuple[Graph, dict[str, Dim]]:
    """A golden as bertc opens a user's file: the graph, and the ranges of its named dimensions."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "golden.onnx")
        onnx.save(read(path), file)
        graph, dims, _ = onnx_source.read_onnx_file(file)
    return graph, dims


def fused(path: Path) -> Fused | str:
    """A golden fused, every match proven; or the sentence with which bertc refuses it."""
    graph, dims = open_graph(path)
    try:
        return fuse.fuse(graph, dims)
    except BertcError as error:
        return str(error)


def counts(found: Fused | str) -> dict[str, int] | str:
    """Matches by rule in one order, or why there are none."""
    return found if isinstance(found, str) else dict(sorted(found.change.counts().items()))


def write_counts(folder: Path = FOLDER) -> dict[str, dict[str, int] | str]:
    """Fuse every golden of a folder and write down, one a line, what was found. A regression then shows as a changed line."""
    found = {name_of(path): counts(fused(path)) for path in sorted(folder.glob("*.onnxtxt*"))}
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in found.items()]
    (folder / COUNTS).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return found


def _head(text: str) -> Iterator[str]:
    for line in io.StringIO(text):
        if not line.startswith("# "):
            return
        yield line[2:].rstrip("\n")


def _is_weight(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.size > SMALL and len(np.unique(array)) > FEW and bool(np.isfinite(array).all())


def _modules(proto: onnx.ModelProto) -> Iterator[str]:
    """`at encoder.layer.0.attention node ...`: bertc reads of the exporter's notes the innermost module alone."""
    import onnx_ir as ir

    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        notes = {p.key: p.value for p in node.metadata_props if p.key == SCOPES}
        if notes and (home := module_path(ir.Node("", "Identity", [], metadata_props=notes))):
            found.setdefault(home, []).append(node.name)
    yield from (f"at {home} {' '.join(nodes)}" for home, nodes in found.items())


def _drawn(weights: list[onnx.TensorProto]) -> Iterator[str]:
    """`weight name type dims mean spread`, or `same name other` for a tensor that is stored twice."""
    first: dict[bytes, str] = {}
    for tensor in weights:
        array = numpy_helper.to_array(tensor)
        content = array.tobytes() + str(array.shape).encode()
        if content in first:
            yield f"same {tensor.name} {first[content]}"
            continue
        first[content] = tensor.name
        dims = "x".join(map(str, array.shape))
        yield f"weight {tensor.name} {array.dtype} {dims} {array.mean():.3g} {array.std():.3g}"


def _draw(name: str, dtype: str, dims: str, mean: str, spread: str) -> onnx.TensorProto:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    array = rng.normal(float(mean), float(spread), tuple(map(int, dims.split("x"))))
    return numpy_helper.from_array(array.astype(dtype), name)


def _forget(proto: onnx.ModelProto, weights: set[str]) -> None:
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(sorted(kept, key=lambda tensor: tensor.name))
    for name in ("metadata_props", "doc_string"):
        proto.ClearField(name)
        proto.graph.ClearField(name)


def _plain(proto: onnx.ModelProto) -> None:
    """One spelling for what can be said in several: no notes, sorted attributes, values of tensors as bytes, short names."""
    graph = proto.graph
    given = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    inner = [name for node in graph.node for name in node.output if name and name not in given]
    # TorchScript names each value after its path, twice as long as all else; subgraphs read the outer names.
    if any("/" in name for name in inner) and not any(a.HasField("g") for n in graph.node for a in n.attribute):
        _rename(graph, {name: f"v{index}" for index, name in enumerate(inner)})
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for tensor in graph.initializer:
        _flat(tensor)
    for node in graph.node:
        _plain_node(node)


def _plain_node(node: onnx.NodeProto) -> None:
    for name in ("metadata_props", "doc_string"):
        if name == "doc_string" or not any(p.key == SCOPES for p in node.metadata_props):
            node.ClearField(name)
    if not node.domain:
        node.ClearField("domain")
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    for attribute in attributes:
        attribute.ClearField("doc_string")
        if attribute.HasField("t"):
            _flat(attribute.t)
            attribute.t.ClearField("name")
    del node.attribute[:]
    node.attribute.extend(attributes)


def _flat(tensor: onnx.TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def _bytes(messages: object) -> list[bytes]:
    """Serialised, in an order of their own: text lists what is known of values as it likes."""
    made = [message.__class__.FromString(message.SerializeToString()) for message in messages]  # type: ignore[attr-defined]
    for message in made:
        if hasattr(message, "metadata_props"):
            message.ClearField("metadata_props")
    ordered = made if made and hasattr(made[0], "op_type") else sorted(made, key=lambda m: m.name)
    return [m.SerializeToString(deterministic=True) for m in ordered]


if __name__ == "__main__":
    write_counts()
