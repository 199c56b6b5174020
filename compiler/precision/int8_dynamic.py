"""int8-dynamic: GEMMs multiply integers that ONNX Runtime makes of each activation as it runs; the rest in float32."""

from __future__ import annotations

from ..core import InputError
from ..graph import Graph
from ._plan import Plan, Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp32") -> Typed:
    """The graph as `quant/dynamic.py` wrote it, whose types are final. Raises InputError for one without an integer GEMM."""
    count = sum(node.op_type == "MatMulInteger" for node in graph.model.graph)
    if not count:
        raise InputError("int8-dynamic needs MatMulInteger nodes, the graph has none; use bertc build --int8 dynamic")
    note = f"{count} GEMMs multiply int8 weights by activations quantised at run time, the rest fp32"
    return Typed(graph, Plan("int8-dynamic", count, notes=(note,)))
