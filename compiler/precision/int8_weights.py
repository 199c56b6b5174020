"""int8-weights: GEMMs read weights stored as int8; all arithmetic is of the base precision."""

from __future__ import annotations

from ..core import InputError
from ..graph import Graph
from ._kernels import Kernels
from ._modes import get
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16", kernels: Kernels | None = None) -> Typed:
    """Type a graph whose weights are stored as int8. Raises InputError for a graph that stores none so."""
    count = sum(node.op_type == "DequantizeLinear" for node in graph.model.graph)
    if not count:
        raise InputError(
            "int8-weights needs int8 weights behind DequantizeLinear, the graph has none; use bertc build --int8 weights"
        )
    note = f"{count} GEMMs store int8 weights, all arithmetic {base}"
    return get(base).apply(graph, evidence, kernels).renamed("int8-weights", note)
