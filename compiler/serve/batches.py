"""Rows to batches and back: arrays of single rows padded and stacked, outputs cut to each row."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import DataError, Dim, Feeds, Outputs, Profile, TensorSpec
from ..runtime import pad_value, padded_dim


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows of a model make a batch. `length`: the dimension that padding makes longer, None where it would change the result:
    rows are batched with rows of the same shape alone, and `why` so. `whole`: requests are not taken apart at all."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    length: str | None
    whole: str = ""
    pad_id: int = 0
    masks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""

    @staticmethod
    def of(
        inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], pad_id: int = 0, masks: Mapping[str, str] | None = None
    ) -> Batching:
        """Read from an artifact's tensors and the kinds of its masks: every tensor's first dimension must be the batch."""
        firsts = {spec.dims[0] if spec.dims else 1 for spec in (*inputs, *outputs)}
        first = next(iter(firsts))
        whole = "" if len(firsts) == 1 and isinstance(first, str) else "not all tensors begin with one batch dimension"
        length, why = None, whole
        try:
            length = None if whole else padded_dim(inputs, masks or {})
        except DataError as error:
            why = str(error).partition("; run without padding")[0]
        return Batching(tuple(inputs), tuple(outputs), length, whole, pad_id, masks or {}, why)

    def unpadded(self, why: str) -> Batching:
        """The same for a model that padding changes."""
        return dataclasses.replace(self, length=None, why=why)

    def most_rows(self, profiles: Sequence[Profile], dims: Mapping[str, Dim] | None = None) -> int | None:
        """The rows that a batch may have, as the engine is made and as far as the model takes them; None: any number."""
        firsts = {spec.dims[0] for spec in self.inputs if spec.dims}
        named = [name for name in firsts if isinstance(name, str)]
        tops = [profile[name].max for profile in profiles for name in named if name in profile]
        sizes = [size for size in firsts if isinstance(size, int)] + ([max(tops)] if tops else [])
        known = [(dims or {})[name].max for name in named if name in (dims or {})]
        return min([*sizes, *(size for size in known if size is not None)], default=None)

    def rows(self, feeds: Feeds) -> list[Feeds]:
        """The feeds of each row, [1, ...]. DataError for inputs of different numbers of rows."""
        if self.whole:
            return [feeds]
        counts = {len(feeds[spec.name]) for spec in self.inputs}
        if len(counts) != 1:
            raise DataError(f"inputs have {', '.join(map(str, sorted(counts)))} rows; they need as many as each other")
        return [{name: array[at : at + 1] for name, array in feeds.items()} for at in range(counts.pop())]

    def tokens(self, row: Feeds) -> int:
        """The length of a row: what its batch is at least as long as."""
        for spec in self.inputs:
            if self.length is not None and self.length in spec.dims:
                return int(row[spec.name].shape[spec.dims.index(self.length)])
        return max(int(np.prod(np.shape(array)[1:])) for array in row.values())

    def group(self, row: Feeds) -> int:
        """The same number for rows that may share a batch."""
        if self.length is not None:
            return 0
        shapes = [np.shape(row[spec.name])[1:] for spec in self.inputs]
        return zlib.crc32(repr(shapes).encode())

    def stack(self, rows: Sequence[Feeds]) -> Feeds:
        """One batch of the rows, padded on the right to the longest: ids with the padding id, masks and types with 0."""
        if len(rows) == 1:
            return rows[0]
        longest = max(map(self.tokens, rows)) if self.length is not None else 0
        return {spec.name: self._stacked(spec, [row[spec.name] for row in rows], longest) for spec in self.inputs}

    def _stacked(self, spec: TensorSpec, arrays: Sequence[np.ndarray], longest: int) -> np.ndarray:
        shape = [longest if dim == self.length else size for dim, size in zip(spec.dims, arrays[0].shape, strict=True)]
        made = np.full([len(arrays), *shape[1:]], pad_value(spec.name, self.pad_id, self.masks), arrays[0].dtype)
        for at, array in enumerate(arrays):
            made[_corner(at, array)] = array[0]
        return made

    def split(self, outputs: Outputs, rows: Sequence[Feeds]) -> list[Outputs]:
        """The outputs of each row, [1, ...], without the positions that padding added."""
        if self.whole:
            return [outputs]
        lengths = [self.tokens(row) for row in rows]
        return [self._row(outputs, at, length) for at, length in enumerate(lengths)]

    def _row(self, outputs: Outputs, at: int, length: int) -> Outputs:
        found: dict[str, np.ndarray] = {}
        for spec in self.outputs:
            rest = tuple(slice(length) if dim == self.length else slice(None) for dim in spec.dims[1:])
            found[spec.name] = outputs[spec.name][(slice(at, at + 1), *rest)]
        return found


def _corner(at: int, array: np.ndarray) -> tuple[Any, ...]:
    """Where a row [1, ...] stands in a padded batch."""
    return (at, *(slice(size) for size in array.shape[1:]))


def joined(rows: Sequence[Mapping[str, np.ndarray]]) -> Outputs:
    """The outputs of a request's rows as one array each; rows of different lengths are padded with 0 on the right."""
    made: dict[str, np.ndarray] = {}
    for name in rows[0]:
        arrays = [row[name] for row in rows]
        shape = np.max([array.shape[1:] for array in arrays], axis=0).astype(int) if arrays[0].ndim > 1 else []
        whole = np.zeros([len(arrays), *shape], arrays[0].dtype)
        for at, array in enumerate(arrays):
            whole[_corner(at, array)] = array[0]
        made[name] = whole
    return made
