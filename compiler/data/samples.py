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
    """The masks among some feeds. Floats without a number above 0 are no mask of 0 and 1: they are added to scores."""
    named = {name: np.asarray(array) for name, array in feeds.items() if is_mask(name, np.asarray(array).dtype)}
    return {name: array for name, array in named.items() if array.dtype.kind != "f" or (array > 0).any()}


def dead_rows(feeds: Feeds) -> tuple[int, ...]:
    """Rows (axis 0) where every mask of rank 2 or more is zero; () without such a mask."""
    alive = [np.asarray(m.reshape(len(m), -1).any(axis=1)) for m in mask_feeds(feeds).values() if m.ndim > 1 and m.size]
    if not alive or len({len(rows) for rows in alive}) > 1:
        return ()
    return tuple(int(row) for row in np.flatnonzero(~np.stack(alive).any(axis=0)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axis of each input and output counts rows. It is the first one in most models; a stack of caches [layers, batch, ...]
    has it second, and an output that has none is absent."""

    batch: str | None
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @staticmethod
    def of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Layout:
        batch = batch_dim(inputs, {dim: Dim(dim) for spec in inputs for dim in spec.dims if isinstance(dim, str)})
        found = [{s.name: s.dims.index(batch) for s in specs if batch in s.dims} for specs in (inputs, outputs) if batch]
        return Layout(batch, *found) if batch else Layout(None, {}, {})


def row_count(sample: Sample, layout: Layout | None = None) -> int:
    """Rows of a sample: by the layout where there is one, else axis 0 of its masks of rank 2 or more, else of its first input of
    rank 1 or more, else 1."""
    for name, axis in (layout.inputs if layout else {}).items():
        if name in sample.feeds:
            return int(np.shape(sample.feeds[name])[axis])
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
