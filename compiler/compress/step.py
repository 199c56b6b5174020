"""What a step gives back: the smaller model, what it did in words and numbers, what rounding and refusals changed."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..distill import Encoded, Net


@dataclasses.dataclass(frozen=True)
class Work:
    """What steps work on: the model as it is now, the original, and the texts that importance is measured on."""

    net: Net
    original: Net
    layers: tuple[int, ...]  # the original's layers that it has
    encoded: Encoded
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that was done. `uniform`: its shapes fit a Hugging Face config."""

    name: str
    net: Net
    said: str
    facts: dict[str, Any]
    layers: tuple[int, ...]
    uniform: bool = True
    notes: tuple[str, ...] = ()
