"""Write an ONNX file a tensor at a time, hashing while writing.

Serialising a model as one message holds its weights twice on top of the source's own copy. On the wire a message is a row of
tagged fields, so the graph without its large weights is serialised by protobuf, and each weight follows as one more field
`GraphProto.initializer` whose payload never exists in memory but for one tensor. (https://protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

LARGE = 2**14  # bytes; what is smaller is left to protobuf
LENGTH_DELIMITED = 2
MODEL_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
GRAPH_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
TENSOR_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write(model: ir.Model, path: Path) -> str:
    """Write a model of less than 2 GB to one file; returns its sha256."""
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


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= LARGE and tensor.dtype != ir.DataType.STRING


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
