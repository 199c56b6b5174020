"""FusedRotary: rotary position embedding. Su et al. 2021, "RoFormer", equation 34, with pairs as GPT-NeoX forms them.

    x [B, h, S, d] float, d even, cos and sin [1 | B, 1, S, d] -> [B, h, S, d]

The paper pairs neighbours; here number i of the first half of a head is paired with number i of its second half. A pair (a, b)
at a place of angle t becomes (a cos t - b sin t, b cos t + a sin t). The angles are given as their cosines and sines, twice for
each pair, and the two need not be equal. Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """In float64, pair by pair."""
    half = x.shape[-1] // 2
    x, cos, sin = (array.astype(np.float64) for array in (x, cos, sin))
    y = np.empty(np.broadcast_shapes(x.shape, cos.shape))
    for i in range(half):
        a, b = x[..., i], x[..., i + half]
        y[..., i] = a * cos[..., i] - b * sin[..., i]
        y[..., i + half] = b * cos[..., i + half] + a * sin[..., i + half]
    return y


def reference(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The rotated heads."""
    return rotate(x, cos, sin).astype(x.dtype)
