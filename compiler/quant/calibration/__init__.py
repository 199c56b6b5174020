"""Calibration: one pass over data that counts what each tensor holds, its file, and the scales that follow from it."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
