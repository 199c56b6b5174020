"""Graphs whose activations are quantised already: integers and rounding, which no rewrite of floats may touch.

They run on ONNX Runtime as they are given. Weights in few bits with float arithmetic are another thing (`stored_weights.py`).
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from ..core import SourceError
from ..graph import Graph
from .stored_weights import find_stored

QUANTISERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
# Operators over integers, which have no float form: their names begin so, of any domain.
INTEGER = (
    "QLinear",
    "DynamicQuantize",
    "MatMulInteger",
    "ConvInteger",
    "MulInteger",
    "QGemm",
    "QAttention",
    "QEmbedLayer",
    "QOrdered",
    "QMoE",
)
SHOWN = 3


def quantised_operators(model: ir.Model) -> dict[str, int]:
    """The operators of a model that quantise activations or compute with integers, by how many; {} for a float model."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type in QUANTISERS or n.op_type.startswith(INTEGER)]
    nodes += [node for function in model.functions.values() for node in function.all_nodes() if node.op_type in QUANTISERS]
    if not nodes:
        return {}
    constant = find_stored(model).constant  # a quantiser of a weight alone is no quantised activation
    return dict(Counter(n.op_type for n in nodes if not all(v is None or v in constant for v in n.inputs)).most_common())


def describe_quantised(graph: Graph) -> str:
    """`34 DynamicQuantizeLinear, 40 MatMulInteger`; "" for a float graph."""
    found = quantised_operators(graph.model)
    return ", ".join(f"{count} {name}" for name, count in list(found.items())[:SHOWN])


def refuse_quantised(graph: Graph, what: str) -> None:
    """Raises SourceError where the activations of a graph are quantised; `what` says what needs floats."""
    if found := describe_quantised(graph):
        raise SourceError(
            f"the model is quantised already ({found}), and {what} needs floats: give the float model, or build this one as it "
            "is: --fp32 --target onnxruntime"
        )
