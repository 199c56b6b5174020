"""The one representation between source and target: an ONNX graph held in onnx_ir.

Everything that reads or writes an .onnx file goes through here, so that the rules on external data hold everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from ..core import SourceError, TensorSpec, check_link, hash_file

if TYPE_CHECKING:
    import onnx_ir as ir

# protobuf refuses messages of 2 GiB and more; names, shapes and nodes need room beside the weights.
EXTERNAL_DATA_THRESHOLD = 2**31 - 2**26
WEIGHTS_SUFFIX = ".data"
DOMAIN = "bertc"  # of fused operators
# Bytes. Shapes, axes and scales are smaller, and passes read them; some exporters write even those as external data.
SMALL_EXTERNAL = 2**10
DATA_FILES = "bertc.data_files"  # in a model's meta: the names of the files that its external data was read from
GEMM_OPS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"})


@dataclasses.dataclass(frozen=True)
class ExternalWeight:
    """Bytes of a file beside a graph, and what they mean. `dtype`: a number of onnx.TensorProto."""

    file: str
    offset: int
    size: int
    dtype: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A thin hold on an `onnx_ir.Model`. Passes take one and return one; none changes a graph it was given."""

    model: ir.Model

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(v) for v in self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(v) for v in self.model.graph.outputs)

    @property
    def opset(self) -> int:
        return self.model.opset_imports.get("", 0)

    @property
    def initializer_bytes(self) -> int:
        return sum(v.const_value.nbytes for v in self.model.graph.initializers.values() if v.const_value is not None)

    def copy(self) -> Graph:
        """A graph that may be changed freely; weights are shared, never copied."""
        return Graph(self.model.clone())

    def op_counts(self) -> dict[str, int]:
        """Node counts by op type, most frequent first; ops outside the default domain carry it as a prefix."""
        counts: dict[str, int] = {}
        for node in self.model.graph.all_nodes():
            name = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.shape is None:
        raise SourceError(
            f"input or output {value.name!r} of the graph has no type or no rank; run onnx.shape_inference on the file first"
        )
    dims = tuple(d if isinstance(d, int) else (str(d.value) if d.value else "?") for d in value.shape.dims)
    return TensorSpec(str(value.name), value.dtype.numpy().name, dims)


def load_graph(path: Path, mapped: bool = False) -> Graph:
    """Read an ONNX file; weights stay on disk or in the message until they are used. `mapped`: large ones stay on disk always.

    Raises SourceError when the file is missing, truncated, of no known type, or when its external data is missing,
    truncated or outside the model's own folder (a path that leaves the folder could read any file of the machine).
    """
    import onnx
    import onnx_ir as ir

    from . import stream as onnx_file

    if not path.is_file():
        raise SourceError(f"no ONNX file at {path}")
    with _readable(path):
        proto = onnx_file.load_without_weights(path) if mapped else onnx.load_model(str(path), load_external_data=False)
    files = _locations(proto)
    model = _checked_model(proto, path, None)
    ir.external_data.set_base_dir(model.graph, path.parent)
    _follow_links(model)
    model.meta[DATA_FILES] = [name for name in files if not mapped or name != path.name]
    if mapped:
        for value in model.graph.initializers.values():
            value.const_value = onnx_file.lazy_from_file(value.const_value, path)
    return Graph(model)


def graph_of_bytes(data: bytes, path: Path, beside: Mapping[str, bytes]) -> Graph:
    """The graph of an .onnx file's bytes, and of those of the files `beside` it by the names that it has for them.

    Nothing is opened: `path` is what errors name. Raises SourceError as `load_graph`, and for a file that is not `beside` it.
    """
    import onnx

    with _readable(path):
        proto = onnx.load_model_from_string(data)
    model = _checked_model(proto, path, beside, len(data) + sum(map(len, beside.values())))
    for value in model.graph.initializers.values():
        value.const_value = _held(value.const_value, beside)
    return Graph(model)


def _held(tensor: ir.TensorProtocol | None, beside: Mapping[str, bytes]) -> ir.TensorProtocol | None:
    """A large weight of a file that was read, where its bytes lie: a message of them would be a copy."""
    import numpy as np
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    array = np.frombuffer(beside[str(tensor.location)], np.uint8, tensor.nbytes, tensor.offset or 0)
    return ir.Tensor(array.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy()), name=tensor.name)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # protobuf raises DecodeError, whose class depends on its backend
        raise SourceError(f"{path} is not a readable ONNX file ({error}); is the download complete?") from error


def _checked_model(proto: Any, path: Path, beside: Mapping[str, bytes] | None, size: int | None = None) -> ir.Model:
    """The model of a message. `beside`: external data that was read; None where it lies in files beside `path`."""
    import onnx_ir as ir

    from . import checks, growth

    if not proto.HasField("graph") or not proto.graph.output:
        raise SourceError(f"{path} holds no ONNX graph with outputs; is the download complete?")
    checks.check_message(proto, path)
    _check_external_data(proto, path, beside)
    growth.check_made(proto, path, size)
    _embed_external(proto, path, beside)
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise SourceError(f"{path} holds an invalid ONNX graph: {error}") from error


def external_files(path: Path) -> tuple[str, ...]:
    """The files beside an .onnx file that its tensors lie in, as it names them. SourceError for a file that is no model."""
    from . import stream as onnx_file

    try:
        proto = onnx_file.load_without_weights(path)
    except Exception as error:  # protobuf's own errors share no public base class with ValueError
        raise SourceError(f"{path} is not a readable .onnx file ({type(error).__name__}: {error})") from error
    return tuple(name for name in _locations(proto) if name != path.name)


def external_weights(data: bytes, path: Path) -> dict[str, ExternalWeight]:
    """Where the initializers lie that an .onnx file's bytes do not hold, by name. SourceError for bytes that are no model."""
    from . import stream as onnx_file

    own = secrets.token_hex(16)  # where large weights lie that are in the bytes themselves: no file is called so
    with _readable(path):
        proto = onnx_file.without_weights(data, own)
    found = {}
    for tensor in _external(proto):
        info = {entry.key: entry.value for entry in tensor.external_data}
        if info.get("location") != own:
            offset, _, size = _extent(tensor, info, path)
            found[tensor.name] = ExternalWeight(info.get("location", ""), offset, size, tensor.data_type, tuple(tensor.dims))
    return found


def _check_external_data(proto: Any, path: Path, beside: Mapping[str, bytes] | None) -> None:
    for tensor in _external(proto):
        info = {entry.key: entry.value for entry in tensor.external_data}
        location = info.get("location", "")
        if beside is not None:
            if location not in beside:
                raise SourceError(f"{path}: tensor {tensor.name!r} lies in {location!r}, which was not read beside it")
            _check_extent(tensor, info, path, len(beside[location]))
            continue
        pure = PurePosixPath(location.replace("\\", "/"))
        file = path.parent / location
        if not location or pure.is_absolute() or ".." in pure.parts:
            raise SourceError(
                f"{path}: tensor {tensor.name!r} points to external data {location!r}, outside the model's folder; "
                "bertc reads only weights in that folder"
            )
        try:
            check_link(file, path.parent)  # the blobs of a hub cache belong to the model
        except SourceError as error:
            if error.__cause__ is not None:
                raise SourceError(f"{path}: tensor {tensor.name!r} points to external data {location!r}: {error}") from error
            _refuse_link(path, tensor.name, f"{location!r}, a link to {file.resolve()}, outside the model's folder")
        if not file.is_file():
            raise SourceError(f"{path}: tensor {tensor.name!r} needs the external data file {location!r}, which is missing")
        _check_extent(tensor, info, path, file.stat().st_size)


def _check_extent(tensor: Any, info: Mapping[str, str], path: Path, found: int) -> None:
    """`found`: the bytes of the file that the tensor lies in."""
    start, length, size = _extent(tensor, info, path)
    if length < size:
        raise SourceError(f"{path}: tensor {tensor.name!r} needs {size} bytes, its external data has {length}; export again")
    if (end := start + length) > found:
        where = info.get("location", "")
        raise SourceError(f"{path}: external data {where!r} has {found} bytes, {tensor.name!r} ends at {end}; copy again")


def _refuse_link(path: Path, name: str, found: str) -> NoReturn:
    raise SourceError(
        f"{path}: tensor {name!r} points to external data {found}; bertc reads weights from plain files in that folder: copy it "
        f"with its links followed, cp -rL {path.parent} COPY"
    )


def _embed_external(proto: Any, path: Path, beside: Mapping[str, bytes] | None) -> None:
    """Read external data of attributes, subgraphs and small initializers now: only large weights stay where they are."""
    import onnx_ir as ir

    weights = len(proto.graph.initializer)  # the first ones
    for place, tensor in enumerate(itertools.chain(_tensors(proto.graph), *map(_tensors, proto.functions))):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        bits = ir.DataType(tensor.data_type).bitwidth
        large = place < weights and math.prod(tensor.dims) * bits > SMALL_EXTERNAL * 8
        if large and (beside is None or bits >= 8):  # numpy has no view of less than a byte
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        start, length, _ = _extent(tensor, info, path)
        if beside is not None:
            tensor.raw_data = beside[info["location"]][start : start + length]
        else:
            with (path.parent / info["location"]).open("rb") as file:
                file.seek(start)
                tensor.raw_data = file.read(length)
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]


def _follow_links(model: ir.Model) -> None:
    """Weights behind a link that was checked, by their real name: onnx_ir reads none through a link."""
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or not (linked := Path(tensor.path)).is_symlink():
            continue
        real = linked.resolve()
        value.const_value = ir.ExternalTensor(
            real.name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(tensor.name), base_dir=real.parent
        )


def _external(proto: Any) -> list[Any]:
    tensors = itertools.chain(_tensors(proto.graph), *map(_tensors, proto.functions))
    return [tensor for tensor in tensors if tensor.data_location == tensor.EXTERNAL]


def _locations(proto: Any) -> list[str]:
    return sorted({each.value for tensor in _external(proto) for each in tensor.external_data if each.key == "location"})


def _extent(tensor: Any, info: Mapping[str, str], path: Path) -> tuple[int, int, int]:
    """(offset, length, bytes that the tensor's shape and type need) of external data; no length means all it needs."""
    import onnx_ir as ir

    texts = info.get("offset", "0"), info.get("length", "0")
    if not all(text.isdecimal() and len(text) < 20 for text in texts):
        raise SourceError(
            f"{path}: tensor {tensor.name!r} has external data at offset {texts[0]!r} of length {texts[1]!r}, not whole numbers"
        )
    offset, length = map(int, texts)
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path}: tensor {tensor.name!r} has a type of no fixed size; it cannot be external data") from error
    size = (math.prod(tensor.dims) * bits + 7) // 8
    return offset, length or size, size


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor a GraphProto or FunctionProto holds: initializers, tensor attributes, and those of subgraphs."""
    yield from getattr(graph, "initializer", ())  # a function has none
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)


def save_graph(graph: Graph, path: Path) -> dict[str, str]:
    """Write `path` (and `path`.data beside it when the weights reach 2 GB); returns {file name: sha256}."""
    import onnx_ir as ir

    from .stream import write_model

    if graph.initializer_bytes < EXTERNAL_DATA_THRESHOLD:
        return {path.name: write_model(graph.model, path)}
    weights = path.name + WEIGHTS_SUFFIX
    ir.save(graph.model, path, external_data=weights)
    return {path.name: hash_file(path), weights: hash_file(path.with_name(weights))}


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that nothing reads and that are neither inputs nor outputs."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
