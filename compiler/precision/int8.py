"""int8: GEMMs in int8 by Q/DQ pairs with scales from data, where it pays; the rest in float16 (ONNX Runtime: float32)."""

from __future__ import annotations

from ..core import InputError
from ..graph import Graph
from ._modes import get
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16") -> Typed:
    """Type a quantised graph: scales in the base's type, so that what a GEMM writes is of that type too.

    Raises InputError for a graph without a Q/DQ pair: it would be the base under another name.
    """
    pairs = sum(node.op_type == "QuantizeLinear" for node in graph.model.graph)
    if not pairs:
        raise InputError("int8 needs Q/DQ pairs, the graph has none; quantise it first (bertc build --int8 --data FILE)")
    note = f"{pairs} activations quantised to int8, the rest {base}"
    return get(base).apply(graph, evidence).renamed("int8", note)
