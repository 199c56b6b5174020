"""bf16: as fp16, in bfloat16: the range of float32 with 8 bits of mantissa."""

from __future__ import annotations

from ..graph import Graph
from . import Typed
from ._typed import HalfType, rewrite

# bfloat16 has float32's exponent, but its largest finite value is below float32's: -3.4028e38 (torch.finfo.min, the usual
# mask) would round to -inf. -1e30 is finite after any score is added to it.
HALF = HalfType("bf16", "BFLOAT16", max=3.3895e38, tiny=2.0**-133, mask=-1e30)


def apply(graph: Graph) -> Typed:
    """A copy of `graph` typed bfloat16 where that is safe; casts at the borders. See `_typed.rewrite`."""
    return rewrite(graph, HALF)
