"""bf16: GEMMs and elementwise work in bfloat16 (range of float32, 8 bits of mantissa), reductions in float32."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import Graph
from ._half import HalfType
from ._kernels import Kernels
from ._plan import Typed
from ._typed import type_half
from ._value_ranges import Evidence

# bfloat16 has float32's exponent, but its largest finite value is below float32's: -3.4028e38 (torch.finfo.min, the usual
# mask) would round to -inf. -1e30 is finite after any score is added to it.
# Convolutions have a bfloat16 form from this opset on. Between 20 and 22 operators gained types and kept their meaning, but for
# GroupNormalization (opset 21: a scale for each channel, not for each group).
OLDEST, CONVOLUTIONS = 20, 22
HALF = HalfType("bf16", "BFLOAT16", max=3.3895e38, tiny=2.0**-133, mask=-1e30, normal=2.0**-126, unit=2.0**-8)


def apply(graph: Graph, evidence: Evidence | None = None, kernels: Kernels | None = None) -> Typed:
    """A copy of `graph` typed bfloat16 where that is safe; casts at the borders. See `_typed.type_half`."""
    return type_half(_with_convolutions(graph, kernels), HALF, evidence, kernels)


def _with_convolutions(graph: Graph, kernels: Kernels | None) -> Graph:
    """A graph of opset 20 or 21 with convolutions, at the opset where they take bfloat16.

    In float32 in the middle of a bfloat16 network TensorRT-RTX stores half of their weights' bytes, and the build is refused.
    As it was where the compiler has no kernel for an operator of that opset.
    """
    kinds = {node.op_type for node in graph.model.graph.all_nodes() if not node.domain}
    if "Conv" not in kinds or "GroupNormalization" in kinds or not OLDEST <= graph.opset < CONVOLUTIONS:
        return graph
    nodes = graph.model.graph.all_nodes()
    if kernels is not None and any(kernels.lacking(node, CONVOLUTIONS, ir.DataType.FLOAT) for node in nodes):
        return graph
    copy = graph.copy()
    copy.model.opset_imports[""] = copy.model.graph.opset_imports[""] = CONVOLUTIONS
    return copy
