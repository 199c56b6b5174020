"""int8-weights: GEMMs read weights stored as int8; all arithmetic is of the base precision."""

from __future__ import annotations

import dataclasses

from ..core import InputError
from ..graph import Graph
from ._modes import get
from ._plan import Typed
from ._value_ranges import Evidence


def apply(graph: Graph, evidence: Evidence | None = None, base: str = "fp16") -> Typed:
    """Type a graph whose weights are stored as int8. Raises InputError for a graph that stores none so."""
    count = sum(node.op_type == "DequantizeLinear" for node in graph.model.graph)
    if not count:
        raise InputError("the graph stores no weights as int8; use bertc build --int8 weights")
    typed = get(base).apply(graph, evidence)
    note = f"the weights of {count} GEMMs are stored as int8; all arithmetic is {base}"
    return dataclasses.replace(typed, plan=dataclasses.replace(typed.plan, mode="int8-weights", notes=(*typed.plan.notes, note)))
