"""fp16: GEMMs and elementwise work in float16, reductions in float32; inputs and outputs keep their types."""

from __future__ import annotations

from ..graph import Graph
from ._half import HalfType
from ._kernels import Kernels
from ._plan import Typed
from ._typed import type_half
from ._value_ranges import Evidence

# A mask term is added to a score. -65504, the smallest finite float16, overflows to -inf as soon as the score is negative;
# -3e4 leaves 35,000 of room for scores and is still exp(-3e4) = 0 after any softmax (reference: kernels, "Mask").
HALF = HalfType("fp16", "FLOAT16", max=65504.0, tiny=2.0**-24, mask=-3e4, normal=2.0**-14, unit=2.0**-11)


def apply(graph: Graph, evidence: Evidence | None = None, kernels: Kernels | None = None) -> Typed:
    """A copy of `graph` typed float16 where float16 is safe; casts at the borders. See `_typed.type_half`."""
    return type_half(graph, HALF, evidence, kernels)
