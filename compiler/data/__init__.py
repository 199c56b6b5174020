"""Samples for a model: synthetic ones of every shape and mask, and a user's texts, tables, audio and arrays, tokenised."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
