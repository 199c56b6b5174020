"""What a half-precision type can hold."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class HalfType:
    """A half-precision type: its largest finite value, its smallest positive one, and a mask term that is safe in it.

    From `normal` on its numbers have all their digits; `unit` is the largest relative error of rounding to one of those.
    """

    mode: str
    type_name: str
    max: float
    tiny: float
    mask: float
    normal: float
    unit: float

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType[self.type_name]
