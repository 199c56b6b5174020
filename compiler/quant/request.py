"""The request for a low-bit build, for all forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..core import Profile
from ..targets import Int8Attention
from ..verification import Truth
from .saturation import weight_bits


@dataclasses.dataclass(frozen=True)
class LowBitRequest:
    """A low-bit build. `base`: the precision that is built where quantising nothing is best. `data`: None for forms without.

    `attention`: the target's int8 attention kernel, None without one. `max_drop`: the limit of the search (`drop_limit`), None
    to quantise all that can be. `limits` and `goldens`: what the artifact will be verified with, None where it will not be.
    """

    precision: str
    target: str
    base: str
    attention: Int8Attention | None
    data: Path | None
    max_drop: float | None
    profiles: tuple[Profile, ...]
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    goldens: Truth | None = None

    @property
    def kind(self) -> str:
        """int8, or fp8, which is for GEMMs alone (with attention in it 16 kernels a layer, without 9)."""
        return "fp8" if self.precision == "fp8" else "int8"

    @property
    def bits(self) -> int:
        """Of int8 weights: see `saturation`."""
        return weight_bits(self.target)


def drop_limit(budget: Mapping[str, float]) -> float | None:
    """The largest drop that int8 may cause: `max_drop`, else the share of decisions that `agreement` lets change, else None."""
    if "max_drop" in budget:
        return budget["max_drop"]
    return 1 - budget["agreement"] if "agreement" in budget else None
