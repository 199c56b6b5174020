"""FusedPackedAttention: attention over packed tokens. Zhai et al. 2022 (ByteTransformer), section III-E; Dao 2023, 3.3 (varlen).

    x [1, T, H] float, mask broadcasting to [B, h, S, S] or None, Wqkv [H, 3 h d], bqkv [3 h d] or None, Wo [h d, N], bo [N] or
    None, tokens [T] and ends [B + 1] int64 (of `packed_layout`), grid [B, S], cos and sin [1 | B, 1, S, d] or None; num_heads h,
    scale -> [1, T, N]

The tokens of a row see those of the same row alone. mask, cos and sin are those of the padded batch, where tokens[t] = b * S + s
says which row and position token t has. With cos and sin it is `rotary_attention`, without them `attention`. Computes in float64,
answers in x's dtype.
"""

from __future__ import annotations

import numpy as np

from . import attention, rotary_attention


def reference(
    x: np.ndarray,
    mask: np.ndarray | None,
    wqkv: np.ndarray,
    bqkv: np.ndarray | None,
    wo: np.ndarray,
    bo: np.ndarray | None,
    tokens: np.ndarray,
    ends: np.ndarray,
    grid: np.ndarray,
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float,
) -> np.ndarray:
    """One row after the other, each as if it were alone."""
    rows, length = grid.shape
    whole = None if mask is None else np.broadcast_to(mask, (rows, num_heads, length, length))
    turns = None if cos is None or sin is None else [np.broadcast_to(t, (rows, *t.shape[1:])) for t in (cos, sin)]
    answers = []
    for at, start in enumerate(ends[:-1]):
        end = ends[at + 1]
        row, places = tokens[start] // length, tokens[start:end] % length
        own = None if whole is None else whole[row][:, places][:, :, places][None]
        alone = x[:, start:end]
        if turns is None:
            answers.append(attention.reference(alone, own, wqkv, bqkv, wo, bo, num_heads=num_heads, scale=scale))
        else:
            cos_of, sin_of = (turn[row : row + 1, :, places] for turn in turns)
            answers.append(
                rotary_attention.reference(alone, own, cos_of, sin_of, wqkv, bqkv, wo, bo, num_heads=num_heads, scale=scale)
            )
    return np.concatenate(answers, axis=1)
