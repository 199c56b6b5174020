"""What goes between the server and a worker: a head in MessagePack, then the bytes of its arrays, never a pickle."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

SIZES = struct.Struct("<IQ")  # bytes of the head, bytes of the arrays
MOST_HEAD = 2**20


class Head(msgspec.Struct):
    """`op`: load, unload, run; or its answer: done, failed. `arrays`: (name, dtype, shape) of what follows."""

    op: str
    job: int = 0
    model: str = ""
    arrays: list[tuple[str, str, list[int]]] = []
    facts: dict[str, Any] = {}


def pack(head: Head, arrays: Mapping[str, np.ndarray] | None = None) -> list[bytes | memoryview]:
    """The parts of a frame, in order, arrays not copied."""
    laid = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    head.arrays = [(name, array.dtype.str, list(array.shape)) for name, array in laid.items()]
    body = msgspec.msgpack.encode(head)
    sizes = SIZES.pack(len(body), sum(array.nbytes for array in laid.values()))
    return [sizes + body, *(array.reshape(-1).view(np.uint8).data for array in laid.values() if array.nbytes)]


def unpack_head(body: bytes | bytearray | memoryview) -> Head:
    """The head of a frame."""
    return msgspec.msgpack.decode(body, type=Head)


def unpack_arrays(head: Head, data: bytes | bytearray | memoryview) -> dict[str, np.ndarray]:
    """The arrays of a frame, over its bytes without a copy."""
    found, at = {}, 0
    for name, dtype, shape in head.arrays:
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(data, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return found
