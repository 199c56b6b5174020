"""FusedAttention: multi-head self-attention with its projections. Vaswani et al. 2017, section 3.2.2.

    x [B, S, H] float, mask broadcasting to [B, h, S, S] or None, Wqkv [H, 3 h d], bqkv [3 h d] or None, Wo [h d, N],
    bo [N] or None; num_heads h, scale -> [B, S, N]

The columns of Wqkv are those of all heads of q, then of k, then of v; a head's d columns stand together. The context of the heads
stands side by side, in order, before Wo. Computes in float64, answers in x's dtype; the mask as in `sdpa`.
"""

from __future__ import annotations

import numpy as np

from .sdpa import attend


def reference(
    x: np.ndarray,
    mask: np.ndarray | None,
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
        context = attend(q[:, None, :, part], k[:, None, :, part].swapaxes(2, 3), v[:, None, :, part], own, scale)
        y = y + context[:, 0] @ wo[part].astype(np.float64)
    return y.astype(x.dtype)
