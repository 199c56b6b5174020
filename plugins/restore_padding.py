"""FusedRestorePadding: packed tokens in the padded batch again. Zhai et al. 2022 (ByteTransformer), section III-C.

x [1, T, ...], tokens, rows and places [T] (of `packed_layout`), grid [B, S] -> [B, S, ...], zeros where there is no token
"""

from __future__ import annotations

import numpy as np


def reference(x: np.ndarray, tokens: np.ndarray, rows: np.ndarray, places: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """One token after the other into zeros."""
    made = np.zeros((grid.size, *x.shape[2:]), x.dtype)
    for token, value in zip(tokens, x[0], strict=True):
        made[token] = value
    return made.reshape(*grid.shape, *x.shape[2:])
