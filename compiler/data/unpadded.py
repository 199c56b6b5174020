"""Calibration's data: one text, recording or row at a time, unpadded, read as a stream.

Alone and unpadded, what a sample adds to the counts does not depend on what stands beside it; so data may be split over machines
in any way, and no padding has to be told from the rest. On a CPU it is also faster than a padded batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import DataError, Dim, Feeds, TensorSpec, derived, hash_file, why_broken
from . import readers, samples, tables
from .readers import Audio
from .tokenizer import Encoder


@dataclasses.dataclass(frozen=True)
class RealPositions:
    """Positions of the dimension `name` that are not padding, where padding had to stay: bool [length]."""

    name: str
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class UnpaddedSample:
    """Feeds of one sample. `alive` is None where none of it is padding; `dead` where all of it is."""

    feeds: Feeds
    label: str
    alive: RealPositions | None = None
    truncated: bool = False
    dead: bool = False

    @property
    def tokens(self) -> int:
        """Positions that count: of the mask, or of the second axis of the first input where there is no mask."""
        if self.alive is not None:
            return int(self.alive.positions.sum())
        shape = next(iter(self.feeds.values())).shape
        return int(shape[1]) if len(shape) > 1 else 1


@dataclasses.dataclass(frozen=True)
class UnpaddedSamples:
    """The samples of a file. `open` gives the makers of all of them in order, so that one that is passed over costs nothing."""

    name: str
    sha256: str
    count: int
    open: Callable[[], Iterator[Callable[[], UnpaddedSample]]]
    notes: tuple[str, ...] = ()

    def part(self, index: int, count: int, done: int = 0) -> Iterator[UnpaddedSample]:
        """Every `count`-th sample from the `index`-th on (from 1), without the first `done` of these."""
        for make in itertools.islice(self.open(), index - 1 + done * count, None, count):
            yield make()

    def size(self, index: int, count: int) -> int:
        return len(range(index - 1, self.count, count))


KNOWN = ".txt, .jsonl, .csv, .tsv, .npz, or a directory of .wav"


def open_unpadded(
    path: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], encode: Encoder | None, audio: Audio | None
) -> UnpaddedSamples:
    """Open a file of one of the KNOWN kinds. Read once here, for its hash and to find what is broken before a long run.

    Raises DataError for data that is missing, empty, broken or unfit, and for a model that does not take one sample at a time.
    """
    check_path(path)
    _check_batch(inputs, dims)
    fit = readers.ModelInputs(tuple(inputs), dims, 1)
    if path.is_dir():
        return _wavs(path, fit, audio)
    return _arrays(path, fit) if path.suffix.lower() == ".npz" else _texts(path, fit, encode)


def check_exists(path: Path) -> None:
    """DataError for a file that is not there."""
    if not path.exists():
        raise DataError(f"no data at {path}{_broken(path)}; give {KNOWN}")


def _broken(path: Path) -> str:
    why = why_broken(path)
    return f" ({why})" if why else ""


def check_path(path: Path) -> None:
    """DataError for a file that is not there, of a type nobody reads, or a folder without recordings."""
    check_exists(path)
    if path.is_dir():
        readers.wav_files(path)
    if not path.is_dir() and path.suffix.lower() not in (".txt", ".npz", *tables.SUFFIXES):
        kind = path.suffix or "unknown"
        raise DataError(f"{path}: unknown data format {kind!r}; known: {KNOWN}")


def _check_batch(inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> None:
    batch = samples.batch_dim(inputs, dims)
    for spec in inputs:
        first = batch if batch is not None and batch in spec.dims else spec.dims[0] if spec.dims else 1
        low = first if isinstance(first, int) else dims.get(first, Dim(first)).min
        if low > 1:
            raise DataError(f"calibration runs one sample at a time, and {spec} takes {low} or more: export with a dynamic batch")


def _texts(path: Path, fit: readers.ModelInputs, encode: Encoder | None) -> UnpaddedSamples:
    reader = readers.TextReader.fitted(path, fit, encode)
    count = sum(1 for _ in readers.text_rows(path))
    if not count:
        raise DataError(f"{path} is empty; give one text or more")

    def make(row: tables.Row) -> UnpaddedSample:
        sample, cut = reader.sample([row])
        return dataclasses.replace(strip_padding(sample.feeds, fit, sample.origins[0]), truncated=bool(cut))

    return UnpaddedSamples(
        path.name,
        hash_file(path),
        count,
        lambda: (functools.partial(make, row) for row in readers.text_rows(path)),
        reader.encode.notes,
    )


def _wavs(path: Path, fit: readers.ModelInputs, audio: Audio | None) -> UnpaddedSamples:
    files = readers.wav_files(path)
    digest = hashlib.sha256("".join(f"{file.name}\0{hash_file(file)}\n" for file in files).encode()).hexdigest()

    def make(file: Path) -> UnpaddedSample:
        read = readers.wav_samples(path, fit, audio, [file])
        return dataclasses.replace(strip_padding(read.samples[0].feeds, fit, file.name), truncated=bool(read.notes))

    make(files[0])  # what is wrong with all of them is told before a long run
    return UnpaddedSamples(path.name, digest, len(files), lambda: (functools.partial(make, file) for file in files))


def _arrays(path: Path, fit: readers.ModelInputs) -> UnpaddedSamples:
    """Rows of the batches in an .npz, which is held in memory as verify holds it."""
    batches = readers.npz_samples(path, fit).samples
    rows = [(feeds, f"{batch.label}, row {at}") for batch in batches for at, feeds in enumerate(_split(batch.feeds, fit))]
    return UnpaddedSamples(
        path.name,
        hash_file(path),
        len(rows),
        lambda: (functools.partial(strip_padding, feeds, fit, label) for feeds, label in rows),
    )


def _split(feeds: Feeds, fit: readers.ModelInputs) -> Iterator[Feeds]:
    """Each row of a batch; all of it where the model knows no batch."""
    axes = samples.Layout.of(fit.inputs, ()).inputs
    size = next((feeds[name].shape[axis] for name, axis in axes.items()), 1)
    for row in range(size):
        yield {name: array.take([row], axes[name]) if name in axes else array for name, array in feeds.items()}


def strip_padding(feeds: Feeds, fit: readers.ModelInputs, label: str) -> UnpaddedSample:
    """One sample without the padding at its end; padding before or between tokens stays, marked: else positions would shift."""
    marking = samples.mask_feeds(feeds)
    masks = {s.name: s for s in fit.inputs if s.name in marking and len(s.dims) > 1}
    if not masks:
        return UnpaddedSample(feeds, label)
    spec = next(iter(masks.values()))
    same = [feeds[name] for name, each in masks.items() if each.dims[-1] == spec.dims[-1]]
    positions = np.all([np.any(m, axis=tuple(range(m.ndim - 1))) for m in same], axis=0)
    if not positions.any():
        return UnpaddedSample(feeds, label, dead=True)
    if positions.all():
        return UnpaddedSample(feeds, label)
    if isinstance(spec.dims[-1], int):
        raise DataError(
            f"{spec} has a fixed length and the data is padded to it; export with a dynamic length to calibrate without padding"
        )
    name = spec.dims[-1]
    sums = [computed for s in fit.inputs for dim in s.dims if isinstance(dim, str) and (computed := derived(dim))]
    if derived(name) or any(name in computed.names for computed in sums):  # past + 1: what is cut here is missing there
        return UnpaddedSample(feeds, label, RealPositions(name, positions))
    length = max(int(np.flatnonzero(positions)[-1]) + 1, fit.limits(name)[0])
    cut = {s.name: _cut(feeds[s.name], s, name, length) for s in fit.inputs}
    return UnpaddedSample(cut, label, None if positions[:length].all() else RealPositions(name, positions[:length]))


def _cut(array: np.ndarray, spec: TensorSpec, name: str, length: int) -> np.ndarray:
    for axis, dim in enumerate(spec.dims):
        array = array.take(range(length), axis) if dim == name else array
    return array
