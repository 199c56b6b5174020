"""Samples: batches of feeds with their origins and labels, masks and dead rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Dim, Feeds, TensorSpec, is_mask


@dataclasses.dataclass(frozen=True)
class Sample:
    """One batch of feeds. `dead_rows` are rows whose mask is all zero: they must be finite, and are not compared.

    `origins` names the source of each row ("texts.txt:17") and `labels` the gold label of each row, where they are known.
    """

    label: str
    feeds: Feeds
    dead_rows: tuple[int, ...] = ()
    origins: tuple[str, ...] = ()
    labels: tuple[Any, ...] = ()

    def where(self, row: int) -> str:
        """The name of one row, for a person: its origin if known, else the sample and the row number."""
        return self.origins[row] if row < len(self.origins) else f"{self.label}, row {row}"


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples read from a file, in its order, and what a reader should know about them (truncated texts)."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def mask_feeds(feeds: Feeds) -> dict[str, np.ndarray]:
    """The mask inputs among some feeds."""
    return {name: array for name, array in feeds.items() if is_mask(name, array.dtype)}


def dead_rows(feeds: Feeds) -> tuple[int, ...]:
    """Rows (axis 0) where every mask of rank 2 or more is zero; () without such a mask."""
    alive = [np.asarray(m.reshape(len(m), -1).any(axis=1)) for m in mask_feeds(feeds).values() if m.ndim > 1 and m.size]
    if not alive or len({len(rows) for rows in alive}) > 1:
        return ()
    return tuple(int(row) for row in np.flatnonzero(~np.stack(alive).any(axis=0)))


def row_count(sample: Sample) -> int:
    """Rows of a sample: axis 0 of its masks of rank 2 or more, else of its first input of rank 1 or more, else 1."""
    ranked = [array for array in mask_feeds(sample.feeds).values() if np.ndim(array) > 1]
    ranked += [np.asarray(array) for array in sample.feeds.values() if np.ndim(array)]
    return len(ranked[0]) if ranked else 1


def batch_dim(inputs: Sequence[TensorSpec], used: Mapping[str, Dim]) -> str | None:
    """The dimension that counts rows: "batch", else the leading one of the first input that has another named one after it."""
    if "batch" in used:
        return "batch"
    for spec in inputs:
        if len(spec.dims) > 1 and isinstance(spec.dims[0], str):
            return spec.dims[0]
    return None
