"""FusedCrossAttention: the "encoder-decoder attention" of Vaswani et al. 2017, section 3.2.3, with its projections.

    x [B, S, H] float, memory [B, T, M], mask broadcasting to [B, h, S, T] or None, Wq [H, h d], bq [h d] or None,
    Wkv [M, 2 h d], bkv [2 h d] or None, Wo [h d, N], bo [N] or None; num_heads h, scale -> [B, S, N]

Queries come from x, keys and values from memory. The columns of Wkv are those of all heads of k, then of v. Computes in float64,
answers in x's dtype; the mask as in `sdpa`.
"""

from __future__ import annotations

import numpy as np

from .sdpa import attend


def reference(
    x: np.ndarray,
    memory: np.ndarray,
    mask: np.ndarray | None,
    wq: np.ndarray,
    bq: np.ndarray | None,
    wkv: np.ndarray,
    bkv: np.ndarray | None,
    wo: np.ndarray,
    bo: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float,
) -> np.ndarray:
    """One head after the other."""
    width = wq.shape[1]
    size = width // num_heads
    q = x.astype(np.float64) @ wq.astype(np.float64) + (0 if bq is None else bq)
    both = memory.astype(np.float64) @ wkv.astype(np.float64) + (0 if bkv is None else bkv)
    y = np.zeros((*x.shape[:2], wo.shape[1])) + (0 if bo is None else bo)
    for head in range(num_heads):
        part, behind = (slice(start, start + size) for start in (head * size, width + head * size))
        own = mask if mask is None or mask.ndim < 4 or mask.shape[1] == 1 else mask[:, head : head + 1]
        context = attend(q[:, None, :, part], both[:, None, :, part].swapaxes(2, 3), both[:, None, :, behind], own, scale)
        y = y + context[:, 0] @ wo[part].astype(np.float64)
    return y.astype(x.dtype)
