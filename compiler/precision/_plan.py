"""What a precision mode decides: the typed graph, its float32 islands, and the constants that changed."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from ..graph import Graph

SHOWN = 3  # islands that a note names

SUMS = "sums in float32"


@dataclasses.dataclass(frozen=True)
class Island:
    """A node that stays in float32 inside a half-precision graph, and why.

    `by` says what decided: `data`, `constant`, `type` (ONNX or control flow allow nothing else) or `free` (nothing demands it,
    and it costs no kernel). `measured` is the number that decided, on the sample of that label. Islands are counted by `kind`.
    The reason is '' where float32 costs and changes nothing (a cast from int, a float64 node): such nodes are not listed.
    `node` and `op` are filled in when the typed graph is written.
    """

    reason: str
    by: str = "type"
    kind: str = ""
    measured: float | None = None
    sample: str = ""
    node: str = ""
    op: str = ""


@dataclasses.dataclass(frozen=True)
class Clamp:
    """A constant that the type cannot hold, and the finite value that takes its place."""

    constant: str
    was: float
    now: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a precision mode did: how many nodes run in the type, which stay in float32, which constants changed.

    `evidence` names the samples that were measured, '' where none were.
    """

    mode: str
    typed_nodes: int = 0
    islands: tuple[Island, ...] = ()
    clamps: tuple[Clamp, ...] = ()
    casts: int = 0
    evidence: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def summary(self) -> tuple[str, ...]:
        """Lines for the user: islands by reason, constants that changed; () for a graph left as it was."""
        if not self.typed_nodes:
            return ()
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
        islands = f"{len(self.islands)} float32 islands ({counts})" if self.islands else "no float32 island"
        changed = tuple(f"{c.constant}: {c.reason}" for c in self.clamps)
        return (f"{self.typed_nodes} nodes in {self.mode}, {islands}", *self._from_data(), *changed, *self.notes)

    def _from_data(self) -> tuple[str, ...]:
        """How many islands come from measured values and of which samples; the first of those that are no sums, with numbers."""
        if not self.evidence:
            return ()
        measured = [island for island in self.islands if island.by == "data"]
        listed = [island for island in measured if island.kind != SUMS]
        shown = tuple(f"{island.node} ({island.op}) stays in float32: {island.reason}" for island in listed[:SHOWN])
        more = (f"and {len(listed) - SHOWN} more (bertc inspect)",) if len(listed) > SHOWN else ()
        if not measured:
            return ()
        return (f"{len(measured)} float32 islands come from measured values ({self.evidence})", *shown, *more)

    def reasons(self) -> dict[str, int]:
        """Islands counted by kind of reason, in their order."""
        return dict(collections.Counter(island.kind or island.reason for island in self.islands))


@dataclasses.dataclass(frozen=True)
class Typed:
    """A graph whose types are decided, and the plan that says how."""

    graph: Graph
    plan: Plan

    def renamed(self, mode: str, *notes: str) -> Typed:
        """The same graph under the name of another mode, with notes of its own."""
        return Typed(self.graph, dataclasses.replace(self.plan, mode=mode, notes=(*self.plan.notes, *notes)))
