"""fp32: the graph in its own types; targets switch TF32 off."""

from __future__ import annotations

from ..graph import Graph
from ._kernels import Kernels
from ._plan import Plan, Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, kernels: Kernels | None = None) -> Typed:
    """The same graph, every node in the type it came with."""
    return Typed(graph, Plan("fp32"))
