"""What a compiler's own kernels can do in a half-precision type, where that is not what ONNX admits or TensorRT does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Kernels:
    """`lacking(node, opset, type)`: why there is no kernel for a node in a type, None where there is one.

    `sums` are operators whose half-precision kernels sum in float32 themselves: as islands they would cost a cast at each end,
    where a compiler that runs kernels one by one does not fuse them.
    """

    lacking: Callable[[ir.Node, int, ir.DataType], str | None]
    sums: frozenset[str] = frozenset()
