"""int8: GEMMs in int8 by Q/DQ pairs with scales from data, where it pays; the rest in float16 (ONNX Runtime: float32)."""

from __future__ import annotations

import dataclasses

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
        raise InputError(
            "the graph has no Q/DQ pair, so nothing of it is int8; quantise it first (bertc build --int8 --data FILE)"
        )
    typed = get(base).apply(graph, evidence)
    note = f"{pairs} activations are quantised; the rest is {base}"
    return dataclasses.replace(typed, plan=dataclasses.replace(typed.plan, mode="int8", notes=(*typed.plan.notes, note)))
