"""The canonical operators of domain `bertc`: what each means in standard ONNX (`bodies/`), and its expansion into that."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
