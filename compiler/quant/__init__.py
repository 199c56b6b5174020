"""INT8 by measurement: which GEMMs can take it (`sites`), what they see (`observe`), how each is quantised best (`fit`), where
the Q/DQ pairs go (`insert`), and which of them the accuracy budget lets stay (`search`, over a graph with switches, `gated`).

Other forms stand beside it: `fp8`, `dynamic` and `weights`. `prepare` chooses the form, `contest` measures which one ONNX Runtime
is faster with, `worth` whether an int8 engine is worth having at all."""

from __future__ import annotations

from .prepare import Asked, Prepared, limit_of, observed, prepare, timed, truth
from .quantise import Quantised, Request, quantise
from .weight_bits import weight_bits

__all__ = [
    "Asked",
    "Prepared",
    "Quantised",
    "Request",
    "limit_of",
    "observed",
    "prepare",
    "quantise",
    "timed",
    "truth",
    "weight_bits",
]
