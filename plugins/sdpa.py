"""FusedSdpa: scaled dot-product attention. Vaswani et al. 2017, "Attention Is All You Need", equation 1.

    q [B, h, S, d] float, k_t [B, h, d, T] (k transposed), v [B, h, T, d], mask broadcasting to [B, h, S, T] or None; scale
    -> [B, h, S, d]

softmax(scale q k_t + mask) v, the softmax over T. The mask is added, so that it may hold a position bias too; it must be finite
somewhere in every row. Computes in float64, answers in q's dtype. The scores are rounded to float32 before the softmax where a
mask is added: beside a mask of -3.4e38 a float32 score vanishes, and a row with nothing else attends to all places alike.
"""

from __future__ import annotations

import numpy as np


def attend(q: np.ndarray, k_t: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float) -> np.ndarray:
    """In float64, head by head and query by query."""
    scores = np.einsum("bhsd,bhdt->bhst", q.astype(np.float64), k_t.astype(np.float64)) * scale
    if mask is not None:
        scores = (scores.astype(np.float32) + mask.astype(np.float32)).astype(np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhst,bhtd->bhsd", weights / weights.sum(-1, keepdims=True), v.astype(np.float64))


def reference(q: np.ndarray, k_t: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
    """The context [B, h, S, d]."""
    return attend(q, k_t, v, mask, scale).astype(q.dtype)
