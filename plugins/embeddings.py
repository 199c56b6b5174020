"""FusedEmbeddings: the input of BERT. Devlin et al. 2018, "BERT", section 3 and figure 2; the norm as in `skip_layernorm`.

    ids [B, S] int, positions [1 or B, S] int or None, types [B, S] int or None,
    word [V, H] float, position [P, H] or None, type [Y, H] or None, gamma [H], beta [H] or None; epsilon -> [B, S, H]

The sum of a row of each table that is given, normalised. A position table without positions is read from row 0 on; a type table
without types is read at row 0. Computes in float64, answers in the word table's dtype.
"""

from __future__ import annotations

import numpy as np

from .skip_layernorm import layernorm


def reference(
    ids: np.ndarray,
    positions: np.ndarray | None,
    types: np.ndarray | None,
    word: np.ndarray,
    position: np.ndarray | None,
    type_: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """The normalised sum [B, S, H]."""
    total = word.astype(np.float64)[ids]
    if position is not None:
        total = total + position[np.arange(ids.shape[1])[None] if positions is None else positions]
    if type_ is not None:
        total = total + type_[np.zeros_like(ids) if types is None else types]
    return layernorm(total, gamma, beta, epsilon).astype(word.dtype)
