"""FusedDisentangledAttention: He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", equation 4.

    x [B, S, H] float, mask broadcasting to [B, h, S, S] or None, Wqkv [H, 3 h d], bqkv [3 h d] or None, Wo [h d, N], bo [N] or
    None, pos_k and pos_q [h, R, d] (the position vectors as keys and as queries), c2p and p2c [1, S, S] int below R;
    num_heads h, scale -> [B, S, N]

The score of query i and key j is scale times (content to content q_i k_j, content to position q_i pos_k[c2p[i, j]], position to
content k_j pos_q[p2c[j, i]]), and the mask. Computes in float64, answers in x's dtype; a mask is added in float32, as in `sdpa`.
"""

from __future__ import annotations

import numpy as np


def reference(
    x: np.ndarray,
    mask: np.ndarray | None,
    wqkv: np.ndarray,
    bqkv: np.ndarray | None,
    wo: np.ndarray,
    bo: np.ndarray | None,
    pos_k: np.ndarray,
    c2p: np.ndarray,
    pos_q: np.ndarray,
    p2c: np.ndarray,
    *,
    num_heads: int,
    scale: float,
) -> np.ndarray:
    """One head after the other, one pair of places after the other."""
    size = wqkv.shape[1] // 3 // num_heads
    bias = 0 if bqkv is None else bqkv.astype(np.float64)
    q, k, v = np.split(x.astype(np.float64) @ wqkv.astype(np.float64) + bias, 3, axis=-1)
    batch, length = x.shape[:2]
    y = np.zeros((batch, length, wo.shape[1])) + (0 if bo is None else bo.astype(np.float64))
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = np.empty((batch, length, length))
        for i, j in np.ndindex(length, length):
            to_key, from_query = pos_k[head, c2p[0, i, j]], pos_q[head, p2c[0, j, i]]
            content, place = np.sum(q[:, i, part] * k[:, j, part], -1), q[:, i, part] @ to_key + k[:, j, part] @ from_query
            scores[:, i, j] = scale * (content + place)
        if mask is not None:
            own = np.broadcast_to(mask, (batch, num_heads, length, length))[:, head]
            scores = (scores.astype(np.float32) + own.astype(np.float32)).astype(np.float64)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = y + weights / weights.sum(-1, keepdims=True) @ v[..., part] @ wo[part].astype(np.float64)
    return y.astype(x.dtype)
