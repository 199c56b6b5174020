"""Whether an int8 engine is worth having, told without a GPU: its kernels and the bytes they move against those of the fp16 one.

The rule: int8 is kept where the bytes it spares are worth more than the kernels it adds, a kernel counted as KERNEL bytes: each
has a launch, a start and an end that no other work fills, taken as 2 us, in which a GPU of this compiler moves 0.6 MB (L4,
300 GB/s) to 3.6 MB (RTX 5090, 1.8 TB/s); one MiB lies where bytes count for more. Arithmetic is left out: int8 has twice the
throughput of fp16, so it could only speak for int8. These are estimates and no times; a machine with the GPU measures
(bertc bench).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .. import work
from ..graph import Graph
from ..profiles import Profile
from ..timings import Shape

KERNEL = 2**20


@dataclasses.dataclass(frozen=True)
class Engine:
    """Kernels of the first profile's engine, and the bytes that they move at that profile's best shape."""

    kernels: int
    nbytes: int

    @property
    def weight(self) -> int:
        """Bytes, kernels included."""
        return self.nbytes + self.kernels * KERNEL

    def to_json(self) -> dict[str, int]:
        return {"kernels": self.kernels, "bytes": self.nbytes}


@dataclasses.dataclass(frozen=True)
class Worth:
    """`kept`: int8, or the name of the other."""

    int8: Engine
    base: Engine
    name: str
    profile: Profile

    @property
    def kept(self) -> str:
        return "int8" if self.int8.weight < self.base.weight else self.name

    @property
    def why(self) -> str:
        spared, added = self.base.nbytes - self.int8.nbytes, self.int8.kernels - self.base.kernels
        moved = f"moves {abs(spared) / 2**20:.1f} MiB {'less' if spared >= 0 else 'more'}"
        launched = f"launches {abs(added)} kernels {'more' if added >= 0 else 'less'}"
        return f"at {_shape(self.profile)} int8 {moved} than {self.name} and {launched}, counted as {KERNEL / 2**20:g} MiB each"

    def said(self) -> str:
        both = ", ".join(
            f"{name} {each.kernels} kernels and {each.nbytes / 2**20:.1f} MiB"
            for name, each in (("int8", self.int8), (self.name, self.base))
        )
        insists = "" if self.kept == "int8" else "INT8 is not worth it here (--int8 static insists): "
        return f"{insists}{self.kept} is kept: {self.why} ({both}; estimated, no time was measured)"

    def to_json(self) -> dict[str, Any]:
        return {"int8": self.int8.to_json(), self.name: self.base.to_json(), "kept": self.kept, "why": self.why}


def engine(graph: Graph, facts: Mapping[str, Any], profile: Profile) -> Engine:
    """Of a built engine. `facts` are its entries in the manifest."""
    total = work.at(graph, facts["kernels"]["rows"], _shape(profile), 0).total()
    assert total.moved is not None, "a built engine lists its kernels"
    return Engine(total.kernels, total.moved)


def _shape(profile: Profile) -> Shape:
    return Shape(tuple((name, dim.opt) for name, dim in profile.items()))
