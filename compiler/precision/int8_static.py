"""int8-static: int8 by Q/DQ pairs whose scales the data gave, whatever a comparison with other forms would say (see int8)."""

from __future__ import annotations

from ..graph import Graph
from . import int8
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16") -> Typed:
    """As int8, under its own name. Raises InputError for a graph without a Q/DQ pair."""
    return int8.apply(graph, evidence, base).renamed("int8-static")
