"""A folder of transformers.js or optimum: .onnx files beside config.json and a tokenizer, often in `onnx/`, and no weights that
transformers reads. The float file is the source; what is in smaller types was made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core import SourceError
from ..data import ModelConfig, settings_files
from ..graph import load_graph
from . import assets, checkpoint, onnx_file
from .model_json import read_json

INNER = "onnx"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
SMALLER = re.compile(
    r"[_-](quantized|quantised|q?u?int8|q4f16|q4|q8|bnb4|fp16|half|bf16|qint8\w*|O[1-4]|optimized)$", re.IGNORECASE
)
HALF = re.compile(r"[_-](fp16|half|bf16)$", re.IGNORECASE)


def has_weights(folder: Path) -> bool:
    """Whether transformers, or sentence-transformers in its first module's folder, finds weights here."""
    places = [folder, *(path.parent for path in folder.glob("[0-9]*_*/config.json"))]
    return any(next(place.glob(pattern), None) is not None for place in places for pattern in WEIGHTS)


def onnx_files(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("*.onnx")), *sorted((folder / INNER).glob("*.onnx"))]


def choose_onnx(folder: Path) -> Path | None:
    """The float model of a folder without weights; None where it has no .onnx file.

    Raises SourceError where several may be meant.
    """
    found = _candidates(onnx_files(folder))
    if len(found) > 1:
        shown = ", ".join(str(path.relative_to(folder)) for path in found)
        raise SourceError(
            f"{folder} has no weights that transformers reads, and {len(found)} .onnx files: {shown}; give one of them"
        )
    return found[0] if found else None


def choose_names(names: Sequence[str]) -> list[str]:
    """The same of the names of a hub repository's files: all that may be meant, `choose_onnx` says so where they are several."""
    files = [Path(name) for name in sorted(names) if name.endswith(".onnx")]
    here = [path for path in files if path.parent.as_posix() in (".", INNER)]
    return [path.as_posix() for path in _candidates(here)]


def _candidates(files: Sequence[Path]) -> list[Path]:
    """The float models of a folder, of these `model.onnx` alone where there is one."""
    floats = [path for path in files if not SMALLER.search(path.stem)]
    chosen = floats or [path for path in files if HALF.search(path.stem)] or files
    return [path for path in chosen if path.stem == "model"] or [*chosen]


def asset_root(path: Path) -> Path:
    """The folder whose tokenizer and config belong to an .onnx file: the one above, where it lies in `onnx/`."""
    above = path.parent.parent
    return above if path.parent.name == INNER and (above / "config.json").is_file() else path.parent


def files_read(path: Path) -> dict[str, Path]:
    """Every file that decides what an .onnx source becomes, by name: it, its external data, its tokenizer and settings.

    What else lies in its folder has no part in it. Raises SourceError for a file that cannot be read.
    """
    root = asset_root(path)
    beside = assets.asset_files(path.parent, root) | settings_files(root, path.parent)
    data = {file.relative_to(path.parent).as_posix(): file for file in onnx_file.data_files(path, load_graph(path, mapped=True))}
    return beside | data


def choice_notes(folder: Path, path: Path) -> tuple[str, ...]:
    """What was chosen of a folder, and what was not."""
    others = [str(each.relative_to(folder)) for each in onnx_files(folder) if each != path]
    if not others and path.parent == folder and not (folder / "config.json").is_file():
        return ()  # a file in a folder of its own
    kind = "; by its name it is not the float32 model, which is not here" if SMALLER.search(path.stem) else ""
    unused = f"; not used: {', '.join(others)}" if others else ""
    return (f"no weights for transformers in the folder: the source is {path.relative_to(folder)}{kind}{unused}",)


def task_of(folder: Path, outputs: Sequence[str], tasks: Sequence[str]) -> str | None:
    """The task that config.json tells, where the graph has the outputs of that task; None where nothing tells."""
    if "sentence_embedding" in outputs:
        return "sentence-embedding"
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json", "the model's config", ModelConfig)
    if not config.get("architectures"):
        return None
    try:
        found = checkpoint.task_of(checkpoint.Checkpoint(folder, folder, config, ()), tasks)
    except SourceError:  # a class without a task of bertc's
        return None
    wanted = {"question-answering": "start_logits", "features": "last_hidden_state", "audio-features": "last_hidden_state"}
    return found if wanted.get(found, "logits") in outputs else None
