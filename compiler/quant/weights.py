"""Weight-only INT8: weights stored as int8 with a scale for each output channel, dequantised inside the GEMM; activations stay.

For networks that wait for their weights: half the bytes, no data needed, and the arithmetic of the type around it. Weights round
to a part in 254 of their channel's largest; nothing else does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..core import RecipeError
from ..graph import Graph, drop_unused_initializers
from .fit import quantise_weights, stored_layout, weight_matrix
from .insert import OPSET, dequantised
from .sites import THIN, weight_of


def weight_only(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """(a copy of a float32 graph whose GEMMs read weights through a DequantizeLinear, GEMMs left alone with the reason).

    Raises RecipeError where no GEMM is left.
    """
    copy = graph.copy()
    copy.model.opset_imports[""] = copy.model.graph.opset_imports[""] = max(OPSET, graph.opset)
    found = [node for node in copy.model.graph if not node.domain and weight_of(node) is not None]
    refused = {str(node.name): why for node in found if (why := _refusal(node))}
    chosen = [node for node in found if node.name not in refused]
    if not chosen:
        reasons = "; ".join(sorted(set(refused.values()))) or "none has constant weights"
        raise RecipeError(f"no GEMM of the graph can be quantised: {reasons}")
    for node in chosen:
        values, scales = quantise_weights(weight_matrix(node))
        node.replace_input_with(1, dequantised(copy.model.graph, node, stored_layout(node, values.astype(np.int8)), scales))
    drop_unused_initializers(copy.model.graph)
    return copy, refused


def _refusal(node: ir.Node) -> str:
    weight = weight_of(node)
    assert weight is not None and weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    return f"weights of {'x'.join(map(str, shape))} are too thin to gain (at least {THIN})" if min(shape) < THIN else ""
