"""INT8 by measurement: which GEMMs can take it (`sites`), what they see (`observe`), how each is quantised best (`fit`), where
the Q/DQ pairs go (`insert`), and which of them the accuracy budget lets stay (`search`, over a graph with switches, `gated`)."""

from __future__ import annotations

from .quantise import Quantised, Request, quantise
from .saturation import weight_bits

__all__ = ["Quantised", "Request", "quantise", "weight_bits"]
