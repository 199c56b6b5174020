"""Sources: a checkpoint, a hub id, a Python factory, an .onnx file or an export, opened as one graph with the truth about it."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
