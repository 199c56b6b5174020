"""FusedPackedLayout: a batch without its padding. Zhai et al. 2022 (ByteTransformer), section III-C, "padding-free algorithm".

    mask [B, S] bool, int or float, not zero where there is a token; from_start -> tokens [T] int64, ends [B + 1] int64

Row b is kept from its first to its last position with a token, or whole where it has none; with `from_start` from position 0 to
its last, or whole where position 0 has none. Rows stand in falling order of length, equal ones in their own; `tokens` has
b * S + s for each position kept, and the row in place i has tokens[ends[i]:ends[i + 1]].
"""

from __future__ import annotations

import numpy as np


def reference(mask: np.ndarray, from_start: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The kept positions and where each row ends."""
    length, kept = mask.shape[1], []
    for row, live in enumerate(mask != 0):
        whole = not live[0] if from_start else not live.any()
        places = np.arange(length) if whole else np.flatnonzero(live)
        kept.append(row * length + np.arange(places[0], places[-1] + 1))
    kept.sort(key=len, reverse=True)
    return np.concatenate(kept).astype(np.int64), np.cumsum([0, *map(len, kept)]).astype(np.int64)
