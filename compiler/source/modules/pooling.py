"""max_pool1d as the max_pool2d of one row: torch.export takes the length of the first for a constant, not that of the second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_plain = functional.max_pool1d


@contextlib.contextmanager
def dynamic_pooling() -> Iterator[None]:
    """For the time of an export. nn.MaxPool1d calls the one in torch.nn.functional."""
    places: tuple[Any, ...] = (functional, torch)
    saved = [place.max_pool1d for place in places]
    for place in places:
        place.max_pool1d = _max_pool1d
    try:
        yield
    finally:
        for place, function in zip(places, saved, strict=True):
            place.max_pool1d = function


def _max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices:
        return _plain(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    kernel, step, pad, apart = (_one(each) for each in (kernel_size, stride or kernel_size, padding, dilation))
    return functional.max_pool2d(input.unsqueeze(-2), (1, kernel), (1, step), (0, pad), (1, apart), ceil_mode).squeeze(-2)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value
