"""FusedPackedLayout: a batch without its padding. Zhai et al. 2022 (ByteTransformer), section III-C, "padding-free algorithm".

    mask [B, S] bool, int or float, not zero where there is a token; from_start -> tokens [T], ends [B + 1], rows [T] and places
    [T], all int64

Row b is kept where it has a token, or whole where it has none; with `from_start` from position 0 to its last token, or whole
where position 0 has none. Rows stand in falling order of length, equal ones in their own; `tokens` has b * S + s for each
position kept, `rows` its b and `places` its s; the row in place i has tokens[ends[i]:ends[i + 1]].
"""

from __future__ import annotations

import numpy as np


def reference(mask: np.ndarray, from_start: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The kept positions, where each row ends, and the row and the place of each."""
    length, kept = mask.shape[1], []
    for row, live in enumerate(mask != 0):
        places = np.flatnonzero(live)
        if not live.any() or (from_start and not live[0]):
            places = np.arange(length)
        elif from_start:
            places = np.arange(places[-1] + 1)
        kept.append(row * length + places)
    kept.sort(key=len, reverse=True)
    tokens = np.concatenate(kept).astype(np.int64)
    return tokens, np.cumsum([0, *map(len, kept)]).astype(np.int64), tokens // length, tokens % length
