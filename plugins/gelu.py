"""FusedGelu: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2; the forms are those of `bias_gelu`.

    x [..., N] float -> [..., N]

Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

import numpy as np

from .bias_gelu import gelu


def reference(x: np.ndarray, form: str = "erf") -> np.ndarray:
    """gelu(x)."""
    return gelu(x, form).astype(x.dtype)
