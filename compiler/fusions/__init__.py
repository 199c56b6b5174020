"""Fusions: `rules/` match subgraphs, `proof/` replays each match against what takes its place, `engine` keeps what holds.

`families` says what each architecture must get (its fusion contract).
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
