"""Timings: contenders called in turns in one run, outputs compared first, ratios with intervals."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
