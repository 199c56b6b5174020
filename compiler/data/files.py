"""A user's file as samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core import DataError, Dim, TensorSpec, why_broken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .labels import Labels
    from .readers import Audio
    from .samples import Data
    from .tokenizer import Encoder


def samples_from_file(
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    encode: Encoder | None = None,
    audio: Audio | None = None,
    batch: int = 8,
    labels: Labels | None = None,
) -> Data:
    """Read .txt (a text a line), .jsonl, .csv or .tsv (the columns of tables.COLUMNS), .npz (raw feeds) or a directory of .wav.

    Feeds have the dtypes of `inputs`; rows keep the order of the file, `batch` at a time (fewer where the model takes
    fewer), padded to the longest of the batch. With `labels` a label is what the task takes it for. Raises DataError for anything
    missing, empty, broken or unfit for the model, and Missing when audio needs soundfile.
    """
    from . import readers, tables  # readers import Sample from here

    path = Path(path)
    fit = readers.ModelInputs(tuple(inputs), dims, batch)
    if path.is_dir():
        return readers.wav_samples(path, fit, audio)
    if not path.is_file():
        why = f" ({broken})" if (broken := why_broken(path)) else ""
        kinds = "a .txt, .jsonl, .csv, .tsv or .npz file, or a directory of .wav files"
        raise DataError(f"no data at {path}{why}; give {kinds}")
    if path.suffix.lower() == ".txt":
        return readers.text_samples(path, fit, encode)
    if path.suffix.lower() in tables.SUFFIXES:
        return readers.table_samples(path, fit, encode, audio, labels)
    if path.suffix.lower() == ".npz":
        return readers.npz_samples(path, fit)
    raise DataError(f"{path}: unknown data format {path.suffix!r}; known: .txt, .jsonl, .csv, .tsv, .npz, or a directory of .wav")
