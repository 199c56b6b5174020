"""The kernels of a built engine, read from the builder's verbose log, and the checks that need nothing but them.

The builder prints one line a layer (`Name: ..., LayerType: ..., Inputs: [...], ...`) when the profiling verbosity is DETAILED.
It is the only evidence of what was built on a machine that cannot run the engine.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import BuildFailed

# Bits an element takes, by the builder's spelling.
BITS = {
    "Float": 32, "Half": 16, "BFloat16": 16, "Int8": 8, "UInt8": 8, "Int32": 32, "Int64": 64, "Bool": 8,
    "FP8": 8, "Float8": 8, "Int4": 4, "FP4": 4, "E8M0": 8, "Double": 64,
}  # fmt: skip
FLOATING = frozenset({"Float", "Half", "BFloat16", "FP8", "Float8", "FP4", "Double"})
# Layers that launch nothing on the GPU: shape arithmetic on the host, and events between streams.
HOST_TYPES = frozenset({"shape_call", "signal", "wait", "stream_signal", "stream_wait", "host", "NoOp"})
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\](?P<rest>, .*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d, ]*)\].*?(?:Datatype|DataType): (?:.*? )?(\w+)[,\s}]")
_TACTIC = re.compile(r", TacticName: (.*?), StreamId:")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\s|\x1e|$)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a kernel: dims are element counts (-1: dynamic), dtype is the builder's word (`Half`)."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of a static tensor; 0 when a dimension is dynamic."""
        count = math.prod(self.dims)
        return max(0, -(-count * BITS.get(self.dtype, 32) // 8)) if all(d >= 0 for d in self.dims) else 0
