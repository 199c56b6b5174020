"""A user's file as samples of one model: its tokenizer or feature extractor, and the sizes its profiles leave."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from . import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..core import Dim, Profile, TensorSpec
    from .labels import Labels
    from .readers import Audio
    from .samples import Data
    from .tokenizer import Encoder


def read_data(
    path: Path,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    assets: Sequence[Path],
    profiles: Sequence[Profile] = (),
    labels: Labels | None = None,
) -> Data:
    """Samples from a user's file with the tokenizer or feature extractor among `assets`, within the profiles' sizes.

    `labels` say what its labels mean; without them they are as they were written.
    """
    limits, encoder, audio = preprocessors(inputs, dims, assets, profiles)
    return files.samples_from_file(path, inputs=inputs, dims=limits, encode=encoder, audio=audio, labels=labels)


def require_readable(
    path: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], assets: Sequence[Path], profiles: Sequence[Profile]
) -> None:
    """DataError for data that the model cannot be fed one sample at a time, as calibration does."""
    from . import unpadded

    limits, encoder, audio = preprocessors(inputs, dims, assets, profiles)
    unpadded.open_unpadded(path, inputs, limits, encoder, audio)


def preprocessors(
    inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], assets: Sequence[Path], profiles: Sequence[Profile] = ()
) -> tuple[Mapping[str, Dim], Encoder | None, Audio | None]:
    """(the sizes that the profiles leave, the tokenizer, the feature extractor), None for what is not among `assets`."""
    from ..data.readers import Audio
    from ..data.tokenizer import INPUTS, Encoder

    folders = {p.name: p.parent for p in assets}
    names = [spec.name for spec in inputs]
    limits = {name: _narrowed(dim, profiles) for name, dim in dims.items()}
    longest = limits["length"].max if "length" in limits else None
    encoder = None
    if "tokenizer.json" in folders and set(names) <= set(INPUTS):
        encoder = Encoder.from_directory(folders["tokenizer.json"], longest, names)
    audio = Audio.from_directory(folders["preprocessor_config.json"]) if "preprocessor_config.json" in folders else None
    return limits, encoder, audio


def _narrowed(dim: Dim, profiles: Sequence[Profile]) -> Dim:
    tops = [profile[dim.name].max for profile in profiles if dim.name in profile]
    if not tops:
        return dim
    return dataclasses.replace(dim, max=max(tops))
