"""What a part of an engine costs."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds (NaN where the target does not run here), bytes of weights, FLOPs, and kernels or nodes."""

    seconds: float
    weight_bytes: float
    flops: float
    kernels: float

    def __add__(self, other: Cost) -> Cost:
        return self._with(other, 1.0)

    def __sub__(self, other: Cost) -> Cost:
        return self._with(other, -1.0)

    def _with(self, other: Cost, sign: float) -> Cost:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(one + sign * two for one, two in pairs))

    def times(self, factor: float) -> Cost:
        return Cost(*(each * factor for each in dataclasses.astuple(self)))

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        seconds = found.pop("seconds")
        return {"milliseconds": None if seconds != seconds else seconds * 1e3, **{n: round(each) for n, each in found.items()}}
