"""Proofs of matches: the matched nodes against the operator that takes their place, on feeds and on real activations."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
