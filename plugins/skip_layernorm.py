"""FusedSkipLayerNorm: a residual sum, normalised. Ba, Kiros & Hinton 2016, "Layer Normalization", equations 3 and 4.

    x [..., H] float, skip [..., H], b [H] or None, gamma [H], beta [H] or None; epsilon -> y [..., H], sum [..., H]

sum = x + skip + b; y = (sum - mean) / sqrt(variance + epsilon) * gamma + beta, with the mean and the biased variance over H.
Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np


def layernorm(u: np.ndarray, gamma: np.ndarray, beta: np.ndarray | None, epsilon: float) -> np.ndarray:
    """Over the last axis, in float64."""
    u = u.astype(np.float64)
    centred = u - u.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon) * gamma
    return y if beta is None else y + beta


def reference(
    x: np.ndarray,
    skip: np.ndarray,
    b: np.ndarray | None,
    gamma: np.ndarray,
    beta: np.ndarray | None = None,
    epsilon: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """(y, sum)."""
    total = x.astype(np.float64) + skip + (0 if b is None else b)
    return layernorm(total, gamma, beta, epsilon).astype(x.dtype), total.astype(x.dtype)
