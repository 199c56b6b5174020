"""FusedConv1dGelu: a layer of wav2vec 2.0's feature encoder. Baevski et al. 2020, "wav2vec 2.0", section 2 and appendix A.

    x [B, C, T] float, W [C2, C/group, K], b [C2] or None, gamma [C2] or None, beta [C2] or None;
    strides [1], pads [begin, end], dilations [1], group, norm, epsilon, form -> [B, C2, T2]

A 1-D cross-correlation, then norm, then GELU in the form of `bias_gelu`. norm "none"; "group": each channel normalised over time
(GroupNorm with one group a channel, Wu & He 2018, section 3.1); "layer": each place in time normalised over channels. gamma is
needed by the two latter. The positional convolution (K even) is pads [K/2, K/2 - 1]. Computes in float64, answers in x's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bias_gelu import gelu
from .skip_layernorm import layernorm


def conv1d(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: int, pads: Sequence[int], dilation: int, group: int
) -> np.ndarray:
    """Place by place of the output, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), tuple(pads)))
    span = dilation * (w.shape[2] - 1) + 1
    length = (padded.shape[2] - span) // stride + 1
    parts = []
    for inputs, weights in zip(np.split(padded, group, 1), np.split(w.astype(np.float64), group, 0), strict=True):
        starts = (t * stride for t in range(length))
        parts.append(np.stack([np.einsum("bck,ock->bo", inputs[:, :, s : s + span : dilation], weights) for s in starts], -1))
    y = np.concatenate(parts, 1)
    return y if b is None else y + b[None, :, None]


def reference(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    strides: Sequence[int] = (1,),
    pads: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1,),
    group: int = 1,
    norm: str = "none",
    epsilon: float = 1e-5,
    form: str = "erf",
) -> np.ndarray:
    """gelu(norm(conv(x)))."""
    y = conv1d(x, w, b, strides[0], pads, dilations[0], group)
    if norm == "none":
        return gelu(y, form).astype(x.dtype)
    if norm not in ("group", "layer") or gamma is None:
        raise ValueError(f"norm {norm!r} with gamma {gamma is not None}; known: none, group and layer with gamma")
    if norm == "layer":
        y = layernorm(y.swapaxes(1, 2), gamma, beta, epsilon).swapaxes(1, 2)
    else:
        y = layernorm(y, np.ones(y.shape[2]), None, epsilon) * gamma[:, None] + (0 if beta is None else beta[:, None])
    return gelu(y, form).astype(x.dtype)
