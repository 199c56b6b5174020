"""A model is as large as its weights: one that a config makes larger than the files beside it is refused while it is built.

transformers builds on the meta device, where a tensor takes no memory, and gives memory afterwards to whatever the files did not
fill. So each parameter is counted as it is made, whatever key of the config made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

from ..core import SourceError
from .weight_files import elements, tensor_count

# Times what the files hold: a tied table is made twice, and a head or a pooler may be missing; ROOM is for small models.
TIMES, ROOM = 3, 2**22
TENSORS = 2000
BUFFERS = 2**28  # masks and tables that are computed, not saved


@contextlib.contextmanager
def built_within(weights: Sequence[Path], config: Path) -> Iterator[None]:
    """Raises SourceError from the constructor of a module that makes the model larger than its files of weights allow."""
    saved, tensors = elements(weights), tensor_count(weights)
    most = {"parameters": TIMES * saved + ROOM, "buffers": max(TIMES * saved, BUFFERS)}
    made = dict.fromkeys(most, 0)
    count = 0

    def parameter(_: nn.Module, name: str, value: Any) -> None:
        nonlocal count
        count += 1
        add("parameters", name, value)

    def add(kind: str, name: str, value: Any) -> None:
        if value is None or value.device.type != "meta":
            return
        made[kind] += value.numel()
        if made[kind] > most[kind] or count > TIMES * (tensors or 0) + TENSORS:
            held = "" if tensors is None else f", and the weights hold {saved:,} numbers in {tensors:,} tensors"
            raise SourceError(
                f"{config} describes a model that its weights are not of: by {name!r} {list(value.shape)} it has "
                f"{made[kind]:,} numbers in {count:,} parameters{held}; correct the sizes in it"
            )

    handles = (
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(lambda _, name, value: add("buffers", name, value)),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
