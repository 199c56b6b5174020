"""Write an ONNX file a tensor at a time, hashing while writing; and read one without its weights.

Serialising a model as one message holds its weights twice on top of the source's own copy. On the wire a message is a row of
tagged fields, so the graph without its large weights is serialised by protobuf, and each weight follows as one more field
`GraphProto.initializer` whose payload never exists in memory but for one tensor. (https://protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ..core import SourceError

if TYPE_CHECKING:  # late below: a worker of a server looks at graphs and changes none, and starts without it
    import onnx_ir as ir

LARGE = 2**14  # bytes; what is smaller is left to protobuf
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
GRAPH_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
SMALL = re.compile("U?INT[1-7]|FLOAT[1-7]E.*")  # types of less than a byte by their names, those of later ONNX too
BELOW_A_BYTE = {number for name, number in onnx.TensorProto.DataType.items() if SMALL.fullmatch(name)}
TENSOR_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write_model(model: ir.Model, path: Path) -> str:
    """Write a model of less than 2 GB to one file; returns its sha256."""
    import onnx_ir as ir

    large = {
        n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None and _is_large(v.const_value)
    }
    rest = model.clone()
    for name in large:
        del rest.graph.initializers[name]
    ir.external_data.load_to_model(rest)  # else the new file would point to the old one's weights
    proto = ir.to_proto(rest)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    heads = {name: _head(name, tensor) for name, tensor in large.items()}
    total = len(graph) + sum(_field_size(len(heads[name]) + tensor.nbytes) for name, tensor in large.items())
    with path.open("wb") as file:
        digest = hashlib.sha256()
        for piece in _pieces(proto, graph, total, large, heads):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def load_without_weights(path: Path) -> onnx.ModelProto:
    """A model read without its large weights, which become external data that lies in the very same file.

    protobuf reads a file into memory and takes it apart in memory: twice the weights. Raises ValueError for what is no message.
    """
    if not path.stat().st_size:
        raise ValueError("empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return without_weights(data, path.name)


def without_weights(data: mmap.mmap | bytes, name: str) -> onnx.ModelProto:
    """The same of bytes. `name`: of the file that large weights then refer to."""
    parts: list[bytes] = []
    for number, start, begin, end in _fields(data, 0, len(data)):
        if number != MODEL_GRAPH:
            parts.append(data[start:end])
            continue
        graph = b"".join(_stub(data, start, begin, end, name) for start, begin, end in _numbered(data, begin, end))
        parts += [_tag(MODEL_GRAPH, len(graph)), graph]
    return onnx.ModelProto.FromString(b"".join(parts))


def lazy_from_file(tensor: ir.TensorProtocol | None, path: Path) -> ir.TensorProtocol | None:
    """A tensor that `mapped` left in the file: each use reads it anew, so nothing is held. Others are given back.

    (onnx_ir maps whole files, and refuses one that has hard links, as `graph.onnx` and `model.onnx` of an artifact.)
    """
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor) or tensor.location != path.name or tensor.dtype.bitwidth < 8:
        return tensor
    offset, length, shape, name = tensor.offset or 0, tensor.nbytes, tuple(tensor.shape.numpy()), tensor.name
    dtype = tensor.dtype

    def load() -> ir.TensorProtocol:
        array = np.fromfile(path, np.uint8, length, offset=offset)
        if array.nbytes != length:
            raise SourceError(f"{path} changed while it was read: tensor {name} is cut off")
        return ir.Tensor(array.view(dtype.numpy()).reshape(shape), name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)


def _numbered(data: mmap.mmap | bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a graph; what is no initializer has no `begin`."""
    for number, start, first, last in _fields(data, begin, end):
        yield start, first if number == GRAPH_INITIALIZER else -1, last


def _stub(data: mmap.mmap | bytes, start: int, begin: int, end: int, name: str) -> bytes:
    """A field of a graph as it is, or a large initializer as a reference to its bytes."""
    if begin < 0 or end - begin < LARGE:
        return data[start:end]
    head, raw = b"", (0, 0)
    for number, field, first, last in _fields(data, begin, end):
        if number == TENSOR_RAW_DATA:
            raw = (first, last - first)
        else:
            head += data[field:last]
    tensor = onnx.TensorProto.FromString(head)
    if raw[1] < LARGE or tensor.data_type in BELOW_A_BYTE:
        return data[start:end]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(raw[0])), ("length", str(raw[1]))):
        tensor.external_data.add(key=key, value=value)
    made = tensor.SerializeToString(deterministic=True)
    return _tag(GRAPH_INITIALIZER, len(made)) + made


def _fields(data: mmap.mmap | bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, where its tag begins, where its payload begins, where it ends) of each field of a message."""
    sizes = {FIXED64: 8, FIXED32: 4}
    while at < end:
        start = at
        tag, at = _read_varint(data, at)
        kind, first = tag & 7, at
        if kind == LENGTH_DELIMITED:
            length, first = _read_varint(data, at)
            at = first + length
        elif kind == VARINT:
            _, at = _read_varint(data, at)
        elif kind in sizes:
            at += sizes[kind]
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at > end:
            raise ValueError("field runs past the end of its message")
        yield tag >> 3, start, first, at


def _read_varint(data: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and at < len(data):
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("unterminated varint")


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= LARGE and int(tensor.dtype) != onnx.TensorProto.STRING


def _pieces(
    proto: onnx.ModelProto, graph: bytes, total: int, large: dict[str, ir.TensorProtocol], heads: dict[str, bytes]
) -> Iterable[bytes]:
    yield proto.SerializeToString(deterministic=True)
    yield _tag(MODEL_GRAPH, total)
    yield graph
    for name, tensor in large.items():
        yield _tag(GRAPH_INITIALIZER, len(heads[name]) + tensor.nbytes)
        yield heads[name]
        data = tensor.tobytes()
        assert len(data) == tensor.nbytes, f"{name} has {len(data)} bytes, its type and shape say {tensor.nbytes}"
        yield data


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to, and with the tag of, its raw data."""
    proto = onnx.TensorProto(name=name, dims=tensor.shape.numpy(), data_type=int(tensor.dtype))
    return proto.SerializeToString(deterministic=True) + _tag(TENSOR_RAW_DATA, tensor.nbytes)


def _tag(field: int, length: int) -> bytes:
    return _varint(field << 3 | LENGTH_DELIMITED) + _varint(length)


def _field_size(length: int) -> int:
    return len(_tag(GRAPH_INITIALIZER, length)) + length


def _varint(value: int) -> bytes:
    """Base 128, least significant group first, the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
