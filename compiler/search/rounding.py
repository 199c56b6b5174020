"""int8-dynamic as ONNX Runtime computes it, simulated in PyTorch: candidates are judged with it before any engine is made.

Weights of a GEMM: symmetric, a scale for each output. Its input: unsigned, one scale for the batch, from the smallest and largest
value (ONNX, DynamicQuantizeLinear). What is multiplied is rounded so, and a gradient passes through as if nothing were (Bengio et
al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013, section 4): a finalist learns with its rounding. It
ranks candidates; the chosen one is judged in its engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..distill import Net, Seen
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


class Rounded(Net):
    """A net that computes so; a teacher beside it does not."""

    target = ""

    def run(self, feeds: Mapping[str, Tensor], hidden: tuple[int, ...] = (), projected: tuple[int, ...] = ()) -> Seen:
        with Int8Dynamic(self.target):
            return super().run(feeds, hidden, projected)


def rounded(net: Net, precision: str, target: str) -> Net:
    """A view of a net, of the same module, that computes as the engine of a precision; float ones as they are."""
    if precision != "int8-dynamic":
        return net
    made = Rounded(net.module, net.origin, net.encoder)
    made.target = target
    return made


def activations(value: Tensor) -> Tensor:
    """Rounded to 256 steps between the smallest and the largest value and 0."""
    exact = value.float()
    low, high = exact.min().clamp(max=0), exact.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return _straight(exact, (((exact / scale).round() + zero).clamp(0, 255) - zero) * scale)


def weights(weight: Tensor, most: int) -> Tensor:
    """Rounded to `most` steps on either side of 0, by row."""
    scale = (weight.float().abs().amax(1, keepdim=True) / most).clamp(min=1e-12)
    return _straight(weight.float(), torch.round(weight.float() / scale).clamp(-most, most) * scale)


def _straight(exact: Tensor, rounded: Tensor) -> Tensor:
    """What is rounded, with the gradient of what is not."""
    return exact + (rounded - exact).detach() if exact.requires_grad else rounded
