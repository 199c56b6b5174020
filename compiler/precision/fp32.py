"""fp32: the graph as it is. TF32 is a choice of the target, cleared and recorded there."""

from __future__ import annotations

from ..graph import Graph
from . import Plan, Typed


def apply(graph: Graph) -> Typed:
    """The same graph, every node in the type it came with."""
    return Typed(graph, Plan("fp32"))
