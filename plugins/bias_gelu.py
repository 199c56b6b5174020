"""FusedBiasGelu: GELU of x + b. Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2.

    x [..., N] float, b [N] float -> [..., N]
    form "erf"    u Phi(u), Phi the standard normal distribution function
         "tanh"   0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))
         "quick"  u sigmoid(1.702 u)

Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

import math

import numpy as np


def gelu(u: np.ndarray, form: str = "erf") -> np.ndarray:
    """One of the three forms, in float64."""
    u = u.astype(np.float64)
    if form == "erf":
        return u * 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-u / math.sqrt(2))
    if form == "tanh":
        return 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    if form == "quick":
        return u * (0.5 + 0.5 * np.tanh(0.851 * u))  # the sigmoid, without overflow
    raise ValueError(f"unknown form of GELU {form!r}; known: erf, tanh, quick")


def reference(x: np.ndarray, b: np.ndarray, form: str = "erf") -> np.ndarray:
    """gelu(x + b)."""
    return gelu(x.astype(np.float64) + b, form).astype(x.dtype)
