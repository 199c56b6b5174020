"""Weights in blocks of a few bits, as MatMulNBits, MatMulBnb4 and GatherBlockQuantized store them, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

# What a number of 4 bits stands for in bitsandbytes' types; NF4 is the quantiles of a normal distribution.
FP4_UPPER = (0.0, 0.00520833, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
FP4 = np.array([*FP4_UPPER, *(-number for number in FP4_UPPER)], np.float32)
NF4_LOWER = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334)
NF4_MIDDLE = (-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
NF4 = np.array([*NF4_LOWER, *NF4_MIDDLE, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes as numbers of `bits` bits along the last axis, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).reshape(*packed.shape[:-1], -1)


def block_matrix(
    packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, shape: tuple[int, int], block: int, bits: int
) -> np.ndarray:
    """[K,N] of MatMulNBits: (q - zero) * scale, each block of K with its own. packed [N, blocks, block * bits / 8]."""
    k, n = shape
    blocks = (k + block - 1) // block
    numbers = unpacked(packed.reshape(n, blocks, -1), bits).astype(np.float32)
    if zeros is None:
        zero: Any = np.float32(2 ** (bits - 1))
    elif zeros.dtype == np.uint8:
        zero = unpacked(zeros.reshape(n, -1), bits)[:, :blocks].astype(np.float32)[..., None]
    else:
        zero = zeros.astype(np.float32).reshape(n, blocks)[..., None]
    weights = (numbers - zero) * scales.astype(np.float32).reshape(n, blocks)[..., None]
    return np.ascontiguousarray(weights.reshape(n, -1)[:, :k].T)


def bnb4_matrix(packed: np.ndarray, largest: np.ndarray, shape: tuple[int, int], block: int, kind: int) -> np.ndarray:
    """[K,N] of MatMulBnb4: a table's number times the largest of its block, in the order of [N,K]; the upper 4 bits first."""
    k, n = shape
    flat = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: n * k]
    numbers = (NF4 if kind else FP4)[flat] * np.repeat(largest.astype(np.float32), block)[: n * k]
    return np.ascontiguousarray(numbers.reshape(n, k).T)


def block_table(
    data: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, axis: int, block: int, default_zero: int
) -> np.ndarray:
    """The table of GatherBlockQuantized: (q - zero) * scale in blocks along one axis, data unpacked already."""
    size = data.shape[axis]

    def spread(array: np.ndarray) -> np.ndarray:
        return np.take(np.repeat(array.astype(np.float32), block, axis=axis), range(size), axis=axis)

    zero = np.float32(default_zero) if zeros is None else spread(zeros)
    return (data.astype(np.float32) - zero) * spread(scales)
