"""FusedLinear: an affine map of the last axis.

    x [..., K] float, W [K, N] float, b [N] float or None -> [..., N]

W is stored input by output, the transpose of torch.nn.Linear's. Accumulates in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np


def reference(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """y[..., n] = sum over k of x[..., k] W[k, n], + b[n]."""
    y = np.einsum("...k,kn->...n", x.astype(np.float64), w.astype(np.float64))
    if b is not None:
        y = y + b
    return y.astype(x.dtype)
