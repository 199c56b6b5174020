"""int8-dynamic as ONNX Runtime computes it, simulated in PyTorch: candidates are judged with it before any engine is made.

Weights of a GEMM: symmetric, a scale for each output. Its input: unsigned, one scale for the batch, from the smallest and largest
value (ONNX, DynamicQuantizeLinear). What is multiplied is rounded so. It ranks
candidates; the chosen one is judged in its engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..quant import weight_bits


class Int8Dynamic(TorchFunctionMode):
    """In the block each Linear multiplies rounded numbers."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.most = 2 ** (weight_bits(target) - 1) - 1

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:
            value, weight, *rest = args
            args = (activations(value), weights(weight, self.most), *rest)
        return function(*args, **(kwargs or {}))


def activations(value: Tensor) -> Tensor:
    """Rounded to 256 steps between the smallest and the largest value and 0."""
    exact = value.float()
    low, high = exact.min().clamp(max=0), exact.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return (((exact / scale).round() + zero).clamp(0, 255) - zero) * scale


def weights(weight: Tensor, most: int) -> Tensor:
    """Rounded to `most` steps on either side of 0, by row."""
    scale = (weight.float().abs().amax(1, keepdim=True) / most).clamp(min=1e-12)
    return torch.round(weight.float() / scale).clamp(-most, most) * scale
