"""Rotary positions that transformers' conformers keep from one call to the next, kept out of an export: they were made for the
length of the last call, and what is made of them while a module is traced is no tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

KEPT = ("cached_sequence_length", "cached_rotary_positional_embedding")  # wav2vec2-bert, wav2vec2-conformer and their copies


@contextlib.contextmanager
def without_caches(module: nn.Module) -> Iterator[None]:
    """For the time of an export, and empty after it."""
    parts = [part for part in module.modules() if all(name in vars(part) for name in KEPT)]
    _empty(parts)
    try:
        yield
    finally:
        _empty(parts)


def _empty(parts: list[nn.Module]) -> None:
    for part in parts:
        for name in KEPT:
            setattr(part, name, None)
