"""INT8 by measurement: which GEMMs can take it (`sites`), what they see (`calibration`), how each is quantised best (`fit`),
where the Q/DQ pairs go (`insert`), and which of them the accuracy budget lets stay (`search`, over a graph with switches,
`gated`).

Other forms stand beside it: `fp8`, `dynamic` and `weights`. `forms` builds the form that was asked for, `timed_choice` measures
which one ONNX Runtime is faster with, `engine_choice` whether an int8 engine is worth having at all.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
