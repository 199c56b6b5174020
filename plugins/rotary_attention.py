"""FusedRotaryAttention: self-attention with rotary positions. Vaswani et al. 2017, section 3.2.2; Su et al. 2021, 3.2.2.

    x [B, S, H] float, mask broadcasting to [B, h, S, S] or None, cos and sin [1 | B, 1, S, d], Wqkv [H, 3 h d], bqkv [3 h d] or
    None, Wo [h d, N], bo [N] or None; num_heads h, scale -> [B, S, N]

As `attention`, but that each head's queries and keys are rotated as in `rotary` before their product; values are not. Computes
in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np

from .rotary import rotate
from .sdpa import attend


def reference(
    x: np.ndarray,
    mask: np.ndarray | None,
    cos: np.ndarray,
    sin: np.ndarray,
    wqkv: np.ndarray,
    bqkv: np.ndarray | None,
    wo: np.ndarray,
    bo: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float,
) -> np.ndarray:
    """One head after the other."""
    width = wqkv.shape[1] // 3
    size = width // num_heads
    bias = np.zeros(3 * width) if bqkv is None else bqkv.astype(np.float64)
    q, k, v = np.split(x.astype(np.float64) @ wqkv.astype(np.float64) + bias, 3, axis=-1)
    y = np.zeros((*x.shape[:2], wo.shape[1])) + (0 if bo is None else bo.astype(np.float64))
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        own = mask if mask is None or mask.ndim < 4 or mask.shape[1] == 1 else mask[:, head : head + 1]
        turned_q, turned_k = (rotate(projected[:, None, :, part], cos, sin) for projected in (q, k))
        context = attend(turned_q, turned_k.swapaxes(2, 3), v[:, None, :, part], own, scale)
        y = y + context[:, 0] @ wo[part].astype(np.float64)
    return y.astype(x.dtype)
