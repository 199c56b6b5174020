"""A user's file as samples of one model: its tokenizer or feature extractor, and the sizes its profiles leave."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..core import DataError
from . import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..core import Dim, Profile, TensorSpec
    from .labels import Labels
    from .readers import Audio
    from .samples import Data, Sample
    from .tokenizer import Encoder


def read_data(
    path: Path,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    assets: Sequence[Path],
    profiles: Sequence[Profile] = (),
    labels: Labels | None = None,
    bounds: Mapping[str, int] | None = None,
) -> Data:
    """Samples from a user's file with the tokenizer or feature extractor among `assets`, within the profiles' sizes.

    `labels` say what its labels mean; without them they are as they were written. `bounds` as for `preprocessors`. Raises
    DataError for what `files` refuses, and for an id beyond the model's table, with its row.
    """
    limits, encoder, audio = preprocessors(inputs, dims, assets, profiles, bounds)
    read = files.samples_from_file(path, inputs=inputs, dims=limits, encode=encoder, audio=audio, labels=labels)
    for sample in read.samples:
        _check_bounds(sample, bounds or {})
    return read


def _check_bounds(sample: Sample, bounds: Mapping[str, int]) -> None:
    for name, rows in bounds.items():
        array = sample.feeds[name]
        beyond = array >= rows
        if beyond.any():
            at = beyond.nonzero()
            where = sample.where(int(at[0][0])) if array.ndim > 1 else sample.label
            raise DataError(f"{where}: {name} has {array[at][0]}, and the model's table for it has {rows} rows (0 to {rows - 1})")


def require_readable(
    path: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], assets: Sequence[Path], profiles: Sequence[Profile]
) -> None:
    """DataError for data that the model cannot be fed one sample at a time, as calibration does."""
    from . import unpadded

    limits, encoder, audio = preprocessors(inputs, dims, assets, profiles)
    unpadded.open_unpadded(path, inputs, limits, encoder, audio)


def preprocessors(
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    assets: Sequence[Path],
    profiles: Sequence[Profile] = (),
    bounds: Mapping[str, int] | None = None,
) -> tuple[Mapping[str, Dim], Encoder | None, Audio | None]:
    """(the sizes that the profiles leave, the tokenizer, the feature extractor), None for what is not among `assets`.

    `bounds`: the sizes of the tables that inputs index, as `index_bounds` of the graph.
    """
    from .readers import Audio, audio_settings
    from .tokenizer import ACCEPTED, TOKENIZER, Encoder

    named = {p.name: p for p in assets}
    names = [spec.name for spec in inputs]
    limits = {name: _narrowed(dim, profiles) for name, dim in dims.items()}
    longest = limits["length"].max if "length" in limits else None
    encoder = None
    if TOKENIZER in named and set(names) <= set(ACCEPTED):
        encoder = Encoder.from_files(named, longest, names, (bounds or {}).get("input_ids"))
    recordings = any(np.dtype(spec.dtype).kind == "f" for spec in inputs)  # a text tower's folder may have its partner's settings
    audio = Audio.from_files(named) if recordings and audio_settings(named)[0] is not None else None
    return limits, encoder, audio


def _narrowed(dim: Dim, profiles: Sequence[Profile]) -> Dim:
    tops = [profile[dim.name].max for profile in profiles if dim.name in profile]
    if not tops:
        return dim
    return dataclasses.replace(dim, max=max(tops))
