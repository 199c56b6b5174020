"""fp8: GEMMs in float8 (E4M3) by Q/DQ pairs with scales from data; attention and the rest in float16."""

from __future__ import annotations

import onnx_ir as ir

from ..core import InputError
from ..graph import Graph
from ._modes import get
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16") -> Typed:
    """Type a graph with FP8 Q/DQ pairs. Raises InputError for a graph without one."""
    quantisers = [node for node in graph.model.graph if node.op_type == "QuantizeLinear"]
    pairs = sum(node.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN for node in quantisers)
    if not pairs:
        raise InputError("fp8 needs FP8 Q/DQ pairs, the graph has none; quantise it first (bertc build --fp8 --data FILE)")
    note = f"{pairs} activations quantised to fp8, the rest {base}"
    return get(base).apply(graph, evidence).renamed("fp8", note)
