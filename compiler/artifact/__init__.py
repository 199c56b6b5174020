"""The artifact: a directory with a manifest, hashes and goldens, written whole or not at all, and checked before it is used."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
