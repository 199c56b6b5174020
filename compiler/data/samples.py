"""Samples: batches of feeds with their origins and labels, masks and dead rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Dim, Feeds, TensorSpec, derived, is_mask


@dataclasses.dataclass(frozen=True)
class Sample:
    """One batch of feeds. `dead_rows` are rows whose mask is all zero: they must be finite, and are not compared.

    `origins` names the source of each row ("texts.txt:17") and `labels` the gold label of each row, where they are known.
    `made_up` is the kind of a mask that bertc made up and that a user's texts need not have; "" for an ordinary input.
    """

    label: str
    feeds: Feeds
    dead_rows: tuple[int, ...] = ()
    origins: tuple[str, ...] = ()
    labels: tuple[Any, ...] = ()
    made_up: str = ""

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


def dead_rows(feeds: Feeds, layout: Layout | None = None) -> tuple[int, ...]:
    """Rows where every mask of rank 2 or more is zero; () without such a mask. Rows are axis 0 where no layout says otherwise."""
    return masked_rows(mask_feeds(feeds), layout)


def masked_rows(found: Feeds, layout: Layout | None = None) -> tuple[int, ...]:
    """`dead_rows` of masks, whatever they are called; each is above 0 where a token is."""
    masks = [(name, mask) for name, mask in found.items() if mask.ndim > 1 and mask.size]
    if layout is not None and layout.batch is not None:
        masks = [(name, np.moveaxis(mask, layout.inputs[name], 0)) for name, mask in masks if name in layout.inputs]
    alive = [np.asarray(m.reshape(len(m), -1).any(axis=1)) for _, m in masks]
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
        batch = batch_dim(inputs, {name: Dim(name) for spec in inputs for name in spec.names})
        found = [{s.name: s.dims.index(batch) for s in specs if batch in s.dims} for specs in (inputs, outputs) if batch]
        return Layout(batch, *found) if batch else Layout(None, {}, {})


def live_rows(array: np.ndarray, sample: Sample, axis: int) -> np.ndarray:
    """An output without the rows whose mask is all zero, which lie along `axis`."""
    rows = [row for row in sample.dead_rows if array.ndim > axis and row < array.shape[axis]]
    return np.delete(array, rows, axis=axis) if rows else array


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
    """The dimension that counts rows: "batch", else the leading one of the first input that has another named one after it, else
    the first named one of a stack [layers, rows, ..., past, ...]."""
    if "batch" in used:
        return "batch"
    for spec in inputs:
        if len(spec.dims) > 1 and isinstance(first := spec.dims[0], str) and derived(first) is None:
            return first
    stacks = (spec.names for spec in inputs if len(spec.dims) > 3 and len(spec.names) > 1)
    return next(stacks, (None,))[0]


def batch_dims(inputs: Sequence[TensorSpec], used: Mapping[str, Dim]) -> tuple[str, ...]:
    """All dimensions that count rows: the batch, and those that are known to count more of them (queries and candidates)."""
    first = batch_dim(inputs, used)
    return () if first is None else (first, *(name for name, dim in used.items() if dim.rows and name != first))


def may_count_rows(inputs: Sequence[TensorSpec], used: Mapping[str, Dim]) -> tuple[str, ...]:
    """Dimensions that may count rows beside the batch, by where they stand: between the batch and the last one in inputs of which
    all dimensions have names ([queries, candidates, length], [batch, windows, samples]), or called batch_....

    A table of pairs [batch, from, to] counts none: there are inputs [batch, from] and [batch, to].
    """
    first = batch_dim(inputs, used)
    runs = [(spec, _run(spec, first)) for spec in inputs if first in spec.dims]
    ends = {run[1] for _, run in runs if len(run) == 2}
    named = [run for spec, run in runs if len(run) == len(spec.dims) > 2 and not is_mask(spec.name, spec.dtype)]
    found = [name for run in named for name in run[1:-1] if not {name, run[-1]} <= ends]
    return tuple(dict.fromkeys((*found, *(name for name in used if name.startswith("batch_") and name != first))))


def _run(spec: TensorSpec, first: str | None) -> tuple[str, ...]:
    """The dimensions from the batch on, as far as each has a name of its own."""
    after = spec.dims[spec.dims.index(first) :] if first is not None else ()
    found: list[str] = []
    for dim in after:
        if not isinstance(dim, str) or derived(dim) is not None or dim in found:
            break
        found.append(dim)
    return tuple(found)
