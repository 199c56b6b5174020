"""A student on disk: a Hugging Face or sentence-transformers directory that `bertc build` takes, with what was lost beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..artifact import COMPRESSION, SEARCH, STUDENT
from ..core import InputError, counted, disk_errors, read_json, write_json, write_text
from ..report import page
from ..source import heads, quiet
from .nets import Net
from .page import render

WEIGHTS = (".safetensors", ".bin", ".onnx", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".gguf")
NOT_THE_STUDENTS = (
    "README.md",
    "onnx",
    "openvino",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    *(each for name in (STUDENT, COMPRESSION, SEARCH) for each in (name, name.replace(".json", ".html"))),
)


def write_student(net: Net, folder: Path, document: Mapping[str, Any]) -> tuple[str, ...]:
    """Write weights, config, tokenizer, pooling, distillation.json and its page into an empty folder; returns notes."""
    with disk_errors(folder):
        write_model(net, folder)
        return page.write_document(folder, STUDENT, document, render)


def write_model(net: Net, folder: Path) -> None:
    """The model alone: what `bertc build` takes, and transformers or sentence-transformers load."""
    origin = net.origin
    _copy_settings(origin.root, folder)
    inner = folder / origin.place.relative_to(origin.root) if origin.place.is_relative_to(origin.root) else folder
    inner.mkdir(parents=True, exist_ok=True)
    for name, path in origin.assets.items():
        if name != "config.json" and not (inner / name).exists() and not (folder / name).exists():
            shutil.copyfile(path, inner / name)
    model = net.model
    with quiet():
        model.to("cpu").save_pretrained(inner)
    for file in inner.glob("model*.safetensors"):
        file.chmod((inner / "config.json").stat().st_mode)  # transformers leaves them readable by their owner alone
    _write_after(net, folder)


def _copy_settings(root: Path, folder: Path) -> None:
    """The files of the teacher's folder and of its modules but the weights of its encoder, and what is for the teacher alone.

    Other folders are none of the model: they may be students that were written there, this one among them.
    """
    entries = read_json(root / "modules.json", list[Module]) if (root / "modules.json").is_file() else []
    modules = {Path(str(each["path"])).parts[0] for each in entries if each["path"]}
    files = [file for file in sorted(root.iterdir()) if file.is_file()]
    for file in (*files, *(file for name in sorted(modules) for file in sorted((root / name).rglob("*")))):
        where = file.relative_to(root)
        own_module = len(where.parts) > 1 and (file.parent / "config.json").is_file() and not _is_encoder(file.parent)
        if not file.is_file() or any(part in NOT_THE_STUDENTS or part.startswith(".") for part in where.parts):
            continue
        if file.suffix in WEIGHTS and not own_module:
            continue
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / where)


class Module(TypedDict):
    """An entry of modules.json, which was checked when the teacher was opened."""

    type: str
    path: str


def _is_encoder(folder: Path) -> bool:
    return "model_type" in read_json(folder / "config.json", dict[str, Any])


def _write_after(net: Net, folder: Path) -> None:
    """A linear module between pooling and what follows, where the student is narrower than its teacher."""
    modules: Any = getattr(net.module, "after", ())
    old = getattr(net.origin.module, "after", ())
    learned = [*getattr(net.module, "tokens", ()), *modules]  # before the pooling and behind it, as in modules.json
    if len(modules) == len(old):
        _write_dense(learned, folder)
        return
    entries = read_json(folder / "modules.json", list[Module])
    at = next(i for i, each in enumerate(entries) if str(each["type"]).endswith("Pooling"))
    name, linear = "student_dense", modules[0].linear
    place = folder / name
    place.mkdir()
    settings = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(place / "config.json", settings)
    entries.insert(at + 1, {"name": "", "path": name, "type": "sentence_transformers.models.Dense"})
    renamed = [{**each, "idx": i, "name": str(i)} for i, each in enumerate(entries)]
    write_text(folder / "modules.json", json.dumps(renamed, indent=2) + "\n", "-o")
    _set_pooling_width(folder, str(entries[at]["path"]), linear.in_features)
    _write_dense(learned, folder)


def _set_pooling_width(folder: Path, path: str, width: int) -> None:
    file = folder / path / "config.json"
    settings = read_json(file, dict[str, Any])
    for name in ("word_embedding_dimension", "embedding_dimension"):
        if name in settings:
            settings[name] = width
    write_json(file, settings)


def _write_dense(modules: Any, folder: Path) -> None:
    """The Dense and LayerNorm modules, which learned with the student."""
    from safetensors.torch import save_file

    file = folder / "modules.json"
    if not file.is_file():
        return
    kinds = ("Dense", "LayerNorm")
    entries = [each for each in read_json(file, list[Module]) if str(each["type"]).endswith(kinds)]
    learned = [each for each in modules if isinstance(each, heads.Dense) or type(each).__name__ == "LayerNorm"]
    if len(entries) != len(learned):
        raise InputError(
            f"{file} names {counted(len(entries), 'Dense or LayerNorm module')}, and the student has {len(learned)}: bertc "
            "cannot tell which file is whose"
        )
    for entry, module in zip(entries, learned, strict=True):
        prefix = "" if isinstance(module, heads.Dense) else "norm."
        place = folder / str(entry["path"])
        for old in place.iterdir():
            if old.suffix in WEIGHTS:
                old.unlink()
        state = {prefix + name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
        save_file(state, place / "model.safetensors", {"format": "pt"})
