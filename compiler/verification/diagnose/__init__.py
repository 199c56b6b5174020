"""Where an artifact drifts from its source, layer by layer, and which nodes are to blame."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
