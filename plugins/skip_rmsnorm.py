"""FusedSkipRmsNorm: a residual sum over its root mean square. Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    x [..., H] float, skip [..., H], b [H] or None, gamma [H]; epsilon -> y [..., H], sum [..., H]

sum = x + skip + b; y = sum / sqrt(mean(sum^2) + epsilon) * gamma. Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np


def reference(
    x: np.ndarray, skip: np.ndarray, b: np.ndarray | None, gamma: np.ndarray, epsilon: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """(y, sum)."""
    total = x.astype(np.float64) + skip + (0 if b is None else b)
    root = np.sqrt(np.square(total).mean(-1, keepdims=True) + epsilon)
    return (total / root * gamma).astype(x.dtype), total.astype(x.dtype)
