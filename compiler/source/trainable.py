"""A checkpoint opened for training: its module as it is exported, its task, and the folders that its files are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..core import DataError, SourceError
from ..data import tokenizer as text
from . import checkpoint
from .assets import asset_files, collect_assets
from .opening import _read_checkpoint, _torch_export, resolve_reference
from .types import KINDS, GivenSource, SourceOptions


@dataclasses.dataclass(frozen=True)
class Trainable:
    """`module` is what `bertc build` would export (pooling and head included), around the transformers model `module.model`.

    `root` is the folder that was named, `place` the one in it that the encoder's files are in. `assets` are the files of its
    tokenizer and its settings, by name.
    """

    module: Any
    inputs: tuple[str, ...]
    task: str
    root: Path
    place: Path
    sha256: str
    assets: Mapping[str, Path]
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> Any:
        return self.module.model


def open_trainable(reference: str, options: SourceOptions | None = None) -> Trainable:
    """Open a checkpoint directory or a hub id whose weights are to be learned from, or to learn.

    Raises SourceError for what has no such weights (an .onnx file, an artifact, a factory), and what open_source raises.
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    if place.kind != "huggingface":
        raise SourceError(
            f"{reference!r} is {KINDS[place.kind]}; what learns, or teaches, is a Hugging Face or sentence-transformers "
            "directory, or a hub id"
        )
    torch_export = _torch_export()
    found, task = _read_checkpoint(place.path, options)
    made, _, notes = torch_export.load_module(found, task, options.trust_remote_code)
    if found.is_audio:
        raise SourceError(f"{reference!r} takes recordings; only encoders of text can be distilled")
    files, more = collect_assets(found.folder, found.root, model=found.root)
    assets = asset_files(found.folder, found.root) | {path.name: path for path in files}
    return Trainable(
        made.module, tuple(made.inputs), task, found.root, found.folder, found.sha256(), assets, (*found.notes, *notes, *more)
    )


def check_same_words(found: Artifact, teacher: GivenSource) -> None:
    """Raises DataError where a teacher has other ids for its words than the artifact: it would be asked about another text."""
    place = resolve_reference(teacher.reference, SourceOptions(revision=teacher.revision, allow_pickle=teacher.allow_pickle))
    own = {path.name: path for path in found.assets}.get(text.TOKENIZER)
    if own is None or place.kind in ("factory", "artifact"):
        return
    folder = checkpoint.encoder_place(place.path) if place.path.is_dir() else place.path.parent
    other = asset_files(folder, place.path if place.path.is_dir() else folder).get(text.TOKENIZER)
    if other is None:
        return
    words, others = (text.load_tokenizer(path).get_vocab(with_added_tokens=True) for path in (own, other))
    if words != others:
        example = next(word for word in sorted({*words, *others}) if words.get(word) != others.get(word))
        raise DataError(
            f"--teacher {teacher} has another vocabulary than {found.path} ({example!r} is {others.get(example)} there, "
            f"{words.get(example)} here): the ids of one mean nothing to the other. Give the teacher that it was distilled from"
        )
