"""Does a PyTorch module compute in half precision? Its weights do not tell: under torch.autocast they are float32."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .factory import FactoryModel
from .silence import quiet
from .torch_export import module_arguments

HALVES = (torch.float16, torch.bfloat16)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether any operator gives a half tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= any(isinstance(leaf, torch.Tensor) and leaf.dtype in HALVES for leaf in tree_leaves(result))
        return result


def computes_half(made: FactoryModel) -> bool:
    """Whether a module makes half tensors of its own example."""
    args, kwargs = module_arguments(made, {name: example.float().numpy() for name, example in made.inputs.items()})
    with torch.no_grad(), quiet(), _Watch() as watch:
        made.module(*args, **kwargs)
    return watch.seen
