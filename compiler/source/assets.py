"""Tokenizer and preprocessor files that travel with a model."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..core import check_link

FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
SLOW = ("vocab.txt", "vocab.json")


def collect_assets(folder: Path, root: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The files to copy, from the model's folder or else from the directory that was asked for, and notes.

    A model with only a slow tokenizer gets a tokenizer.json, converted by transformers; if that fails, the note says so. Raises
    SourceError for a link out of the directory: what it points to would travel with the artifact.
    """
    found = {name: path for base in (root, folder) for name in FILES if (path := base / name).is_file()}
    found |= {path.name: path for base in (root, folder) for path in sorted(base.glob("*.model")) if path.is_file()}
    for path in found.values():
        check_link(path, root if path.is_relative_to(root) else folder)
    notes: list[str] = []
    slow = any(name in found for name in SLOW) or any(name.endswith(".model") for name in found)
    if slow and "tokenizer.json" not in found:
        made, note = _converted(found)
        notes.append(note)
        found |= {made.name: made} if made else {}
    return tuple(found[name] for name in sorted(found)), notes


def _converted(found: Mapping[str, Path]) -> tuple[Path | None, str]:
    """(tokenizer.json, a note). transformers sees a copy: nothing but what was found, with no path and no code named in it."""
    target = Path(tempfile.mkdtemp(prefix="bertc-tokenizer-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        from transformers import AutoTokenizer

        from .torch_export import quiet

        for name, path in found.items():
            shutil.copyfile(path, target / name)
        dropped = _without_names(target / "tokenizer_config.json")
        with quiet():
            # trust_remote_code is said: else transformers asks on the terminal, and a "y" in a pipe runs the code.
            tokenizer = AutoTokenizer.from_pretrained(
                str(target), local_files_only=True, trust_remote_code=False
            ).backend_tokenizer
    except Exception as error:  # noqa: BLE001 - a tokenizer nobody can convert is no reason to refuse the model
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return None, f"no tokenizer.json, and converting the slow tokenizer failed ({why})"
    tokenizer.save(str(target / "tokenizer.json"))
    return target / "tokenizer.json", "tokenizer.json converted from the slow tokenizer's files" + dropped


def _without_names(config: Path) -> str:
    """Take out of tokenizer_config.json what names other files and Python classes; returns the rest of a note that says so."""
    if not config.is_file():
        return ""
    settings = json.loads(config.read_text("utf-8"))
    named = sorted(key for key in settings if key == "auto_map" or (key.endswith("_file") and settings[key] is not None))
    config.write_text(json.dumps({key: value for key, value in settings.items() if key not in named}), "utf-8")
    return f", without {', '.join(named)} of tokenizer_config.json" if named else ""
