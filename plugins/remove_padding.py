"""FusedRemovePadding: a value of a padded batch, read token by token. Zhai et al. 2022 (ByteTransformer), section III-C.

    x [B, S, ...], tokens, rows and places [T] (of `packed_layout`), grid [B, S]; spread "" -> [1, T, ...]

With spread "positions" x is [1, S, ...], with spread "rows" [B, 1, ...].
"""

from __future__ import annotations

import numpy as np


def reference(
    x: np.ndarray, tokens: np.ndarray, rows: np.ndarray, places: np.ndarray, grid: np.ndarray, *, spread: str = ""
) -> np.ndarray:
    """One token after the other, where its index says that it lies."""
    length = grid.shape[1]
    at = [(int(token) // length, int(token) % length) for token in tokens]
    found = [x[0 if spread == "positions" else row, 0 if spread == "rows" else place] for row, place in at]
    return np.stack(found)[None]
