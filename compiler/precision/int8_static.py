"""int8-static: as int8, by scales from data everywhere; no other form is tried."""

from __future__ import annotations

from ..graph import Graph
from . import int8
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16") -> Typed:
    """As int8, under its own name. Raises InputError for a graph without a Q/DQ pair."""
    return int8.apply(graph, evidence, base).renamed("int8-static")
