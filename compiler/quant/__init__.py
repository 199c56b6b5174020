"""Post-training quantisation: which GEMMs can be int8 (`sites`), the values they read (`calibration`), how each is quantised best
(`fit`), where the Q/DQ pairs go (`insert`), and which layers the accuracy budget leaves in float (`search`, over a graph with
switches, `gated`).

Other forms: `fp8`, `dynamic` and `weights`. `forms` builds the requested form, `timed_choice` times which form ONNX Runtime is
fastest with, `engine_choice` estimates whether an int8 engine is faster than one in the base precision.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
