"""FusedPastAttention: self-attention of a decoder that keeps the keys and values it has made. Vaswani et al. 2017, section 3.2.3;
the cache: Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", section 2.4.

    x [B, S, H] float, mask broadcasting to [B, h, S, P + S] or None, past_k [B, h, P, d], past_v [B, h, P, d], Wqkv [H, 3 h d],
    bqkv [3 h d] or None, Wo [h d, N], bo [N] or None; num_heads h, scale
    -> [B, S, N], present_k [B, h, P + S, d], present_v [B, h, P + S, d]

Token after token: each new key and value is put behind the cache of its head. What a query may see is the mask's business: no
order is implied. Computes in float64, answers in x's dtype; the mask as in `sdpa`, weights as in `attention`.
"""

from __future__ import annotations

import numpy as np

from .sdpa import attend


def reference(
    x: np.ndarray,
    mask: np.ndarray | None,
    past_k: np.ndarray,
    past_v: np.ndarray,
    wqkv: np.ndarray,
    bqkv: np.ndarray | None,
    wo: np.ndarray,
    bo: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, present_k, present_v)."""
    batch, length, _ = x.shape
    size = wqkv.shape[1] // 3 // num_heads
    bias = np.zeros(wqkv.shape[1]) if bqkv is None else bqkv
    keys, values = [], []
    y = np.zeros((batch, length, wo.shape[1])) + (0 if bo is None else bo)
    for head in range(num_heads):
        q, k, v = (_project(x, wqkv, bias, (part * num_heads + head) * size, size) for part in range(3))
        keys.append(np.concatenate([past_k[:, head], k], 1))
        values.append(np.concatenate([past_v[:, head], v], 1))
        own = mask if mask is None or mask.ndim < 4 or mask.shape[1] == 1 else mask[:, head : head + 1]
        context = attend(q[:, None], keys[-1][:, None].swapaxes(2, 3), values[-1][:, None], own, scale)
        y = y + context[:, 0] @ wo[head * size : (head + 1) * size].astype(np.float64)
    return y.astype(x.dtype), np.stack(keys, 1).astype(x.dtype), np.stack(values, 1).astype(x.dtype)


def _project(x: np.ndarray, w: np.ndarray, b: np.ndarray, start: int, size: int) -> np.ndarray:
    """Columns `start` to `start + size` of x @ W + b."""
    return x.astype(np.float64) @ w[:, start : start + size].astype(np.float64) + b[start : start + size]
