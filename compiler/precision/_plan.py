"""What a precision mode decides: the typed graph, its float32 islands, and the constants that changed."""

from __future__ import annotations

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
    """

    node: str
    op: str
    reason: str
    by: str = "type"
    kind: str = ""
    measured: float | None = None
    sample: str = ""


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
        """What a user should be told: islands by reason, constants that changed; () for a graph left as it was."""
        if not self.typed_nodes:
            return ()
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons().items())
        islands = f"{len(self.islands)} float32 islands ({why})" if self.islands else "no float32 island"
        changed = tuple(f"{c.constant}: {c.reason}" for c in self.clamps)
        return (f"{self.typed_nodes} nodes in {self.mode}, {islands}", *self._from_data(), *changed, *self.notes)

    def _from_data(self) -> tuple[str, ...]:
        """How many islands the data demands and which data that was; the first of those that are no sums, with their numbers."""
        if not self.evidence:
            return ()
        demanded = [island for island in self.islands if island.by == "data"]
        told = [island for island in demanded if island.kind != SUMS]
        shown = tuple(f"{island.node} ({island.op}) stays in float32: {island.reason}" for island in told[:SHOWN])
        more = (f"and {len(told) - SHOWN} more (bertc inspect)",) if len(told) > SHOWN else ()
        return (f"{len(demanded)} of the islands are demanded by the values of {self.evidence}", *shown, *more)

    def reasons(self) -> dict[str, int]:
        """Islands counted by reason, for a table a person reads."""
        counts: dict[str, int] = {}
        for island in self.islands:
            key = island.kind or island.reason
            counts[key] = counts.get(key, 0) + 1
        return counts


@dataclasses.dataclass(frozen=True)
class Typed:
    """A graph whose types are decided, and the plan that says how."""

    graph: Graph
    plan: Plan
