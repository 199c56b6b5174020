"""Tokenizer and preprocessor files that travel with a model."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

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

    A model with only a slow tokenizer gets a tokenizer.json, converted by transformers; if that fails, the note says so.
    """
    found = {name: path for base in (root, folder) for name in FILES if (path := base / name).is_file()}
    found |= {path.name: path for base in (root, folder) for path in sorted(base.glob("*.model"))}
    notes: list[str] = []
    slow = any(name in found for name in SLOW) or any(name.endswith(".model") for name in found)
    if slow and "tokenizer.json" not in found:
        made, note = _converted(folder)
        notes.append(note)
        found |= {made.name: made} if made else {}
    return tuple(found[name] for name in sorted(found)), notes


def _converted(folder: Path) -> tuple[Path | None, str]:
    try:
        from transformers import AutoTokenizer

        from .torch_export import quiet

        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except Exception as error:  # noqa: BLE001 - a tokenizer nobody can convert is no reason to refuse the model
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return None, f"no tokenizer.json, and converting the slow tokenizer failed ({why})"
    target = Path(tempfile.mkdtemp(prefix="bertc-tokenizer-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    tokenizer.save(str(target / "tokenizer.json"))
    return target / "tokenizer.json", "tokenizer.json converted from the slow tokenizer's files"
