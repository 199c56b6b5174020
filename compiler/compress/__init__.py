"""Compression: layers, FFN neurons, heads and ranks taken out of a model by what its output loses, judged and written.

Structured only: every step makes the matrices of the engine smaller or fewer. Needs torch, which is imported when one of the
names is used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
