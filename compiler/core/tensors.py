"""What goes in and out of a graph: the spec of a tensor, and feeds and outputs as numpy arrays by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .sizes import names_of, size_at

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, numpy dtype name and dimensions: an int, the name of a dynamic dim, or a sum of such names
    (`past + 1`)."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its dynamic dims, those in sums too."""
        return names_of(self.dims)

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape where the named dims have these sizes."""
        return tuple(size_at(dim, sizes) for dim in self.dims)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "dims": list(self.dims)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        return TensorSpec(data["name"], data["dtype"], tuple(data["dims"]))


def is_mask(name: str, dtype: np.dtype | str) -> bool:
    """Whether an input is a mask: called so. A float one may be of either kind, see data/mask_kinds.py."""
    return "mask" in name.lower() and np.dtype(dtype).kind in "iubf"
