"""FusedPackedLayout: a batch without its padding. Zhai et al. 2022 (ByteTransformer), section III-C, "padding-free algorithm".

    mask [B, S] bool, int or float, not zero where there is a token; from_start -> tokens [T] int64, ends [B + 1] int64

Row b is kept from its first to its last position with a token, or from position 0 (`from_start`), or whole where it has none.
Rows stand in falling order of length, equal ones in their own; `tokens` has b * S + s for each position kept, and the row in
place i has tokens[ends[i]:ends[i + 1]].
"""

from __future__ import annotations

import numpy as np


def reference(mask: np.ndarray, from_start: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The kept positions and where each row ends."""
    length, kept = mask.shape[1], []
    for row, live in enumerate(mask != 0):
        places = np.flatnonzero(live) if live.any() else np.array([0, length - 1])
        start = 0 if from_start else places[0]
        kept.append(row * length + np.arange(start, places[-1] + 1))
    kept.sort(key=len, reverse=True)
    return np.concatenate(kept).astype(np.int64), np.cumsum([0, *map(len, kept)]).astype(np.int64)
