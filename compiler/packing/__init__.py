"""A batch without its padding: tokens are packed in front of the encoder and put back where a head wants the padded batch.

The fused graph knows its mask, so this follows from a plain export. `region.py` finds which nodes work on one token at a time,
`rewrite.py` gives them [1, tokens, ...] in place of [batch, length, ...], `check.py` proves the result on rows of all lengths.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
