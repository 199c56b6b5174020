"""Python's cyclic garbage collector, less often while a model is exported.

A full pass visits every object alive, 700,000 of them once torch, transformers and an export are in memory, and takes 0.2 s. An
export makes so many that live on that eight passes fall into it, to find next to nothing. Later stages keep Python's settings:
they make copies of graphs, which hold each other in cycles and may hold weights.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Passes over the middle generation before a full one may come. Each stands for 7,000 new objects by Python's own settings, and
# the export of six layers makes about a million: a full pass comes once in three such, so what larger ones leave is found.
SELDOM = 500


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Inside, full passes come at SELDOM; the young generations are collected as ever, and afterwards all is as before.

    Where a caller set it higher, or turned the collector off, it stays so.
    """
    young, middle, full = gc.get_threshold()
    gc.set_threshold(young, middle, max(full, SELDOM))
    try:
        yield
    finally:
        gc.set_threshold(young, middle, full)
