"""Tokenizer and preprocessor files that travel with a model."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from ..core import check_link, first_line, machine, read_json, scratch
from ..data import AUDIO_FILES, SENTENCE_FILES, Encoder, audio_settings, image_files, settings_files
from ..data import tokenizer as text

TOKENIZER, TOKENIZER_CONFIG = text.TOKENIZER, text.TOKENIZER_CONFIG
FILES = (
    "config.json",
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *AUDIO_FILES,
)
SLOW = ("vocab.txt", "vocab.json")
STATE = ("truncation", "padding")  # of a tokenizer.json: what a call was last asked for, not what texts become


def asset_files(folder: Path, root: Path) -> dict[str, Path]:
    """The files of a tokenizer, a preprocessor and the config, by name: those in `folder` before those in `root`."""
    found = {name: path for base in (root, folder) for name in FILES if (path := base / name).is_file()}
    return found | {path.name: path for base in (root, folder) for path in sorted(base.glob("*.model")) if path.is_file()}


def collect_assets(folder: Path, root: Path, model: Path | None = None) -> tuple[tuple[Path, ...], list[str]]:
    """The files to copy, from the model's folder or else from the directory that was asked for, and notes.

    Tokenizer and settings are as transformers takes them where it is installed: from a slow tokenizer's files it converts, and
    what tokenizer_config.json says goes over tokenizer.json. If that fails, the note says so. `model`: the directory of a
    checkpoint, whose settings of sentence-transformers count only beside a modules.json. Raises SourceError for a link out of
    the directory: what it points to would travel with the artifact.
    """
    found = asset_files(folder, root)
    sentence = settings_files(model or root, folder)
    for path in (*found.values(), *sentence.values()):
        check_link(path, next(base for base in (model or root, root, folder) if path.is_relative_to(base)))
    notes: list[str] = []
    settings = {name: found[name] for name in AUDIO_FILES if name in found}
    for name, kind in image_files(settings, audio_settings(settings)[0]).items():
        notes.append(f"{name} prepares images ({kind}): left out, bertc prepares texts and recordings")
        del found[name]
    if sentence and model and not (model / "modules.json").is_file():
        notes.append(f"not used: {', '.join(sorted(sentence))} (sentence-transformers reads them only beside a modules.json)")
    else:
        found |= sentence
    slow = any(name in found for name in SLOW) or any(name.endswith(".model") for name in found)
    if TOKENIZER in found or slow:
        made, more = _as_transformers(found)
        found |= made
        notes += more
    return tuple(found[name] for name in sorted(found)), notes


def _as_transformers(found: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """(files that take the place of those found, notes).

    transformers sees a copy: nothing but what was found, with no path and no code named in it.
    """
    fast = TOKENIZER in found
    try:
        from transformers import AutoTokenizer

        from .silence import quiet

        with scratch() as made, quiet():
            for name, path in found.items():
                shutil.copyfile(path, made / name)
            dropped = _without_names(made / TOKENIZER_CONFIG)
            # trust_remote_code is said: else transformers asks on the terminal, and a "y" in a pipe runs the code.
            theirs = AutoTokenizer.from_pretrained(str(made), local_files_only=True, trust_remote_code=False)
            content = theirs.backend_tokenizer.to_str()
    except Exception as error:  # noqa: BLE001 - a tokenizer nobody can convert is no reason to refuse the model
        return {}, [_not_read(error, found)]
    files: dict[str, Path] = {}
    notes: list[str] = []
    if not fast:
        files[TOKENIZER] = _written(TOKENIZER, content)
        notes.append("tokenizer.json converted from the slow tokenizer's files" + dropped)
    elif _meaning(content) != _meaning(_normal_form(found[TOKENIZER])):
        files[TOKENIZER] = _written(TOKENIZER, content)
        parts = ", ".join(
            key for key, value in _meaning(content).items() if value != _meaning(_normal_form(found[TOKENIZER])).get(key)
        )
        notes.append(f"tokenizer.json is written as transformers takes it, by {TOKENIZER_CONFIG}: another {parts}")
    if fast and "auto_map" in dropped:
        notes.append(f"the tokenizer is taken as transformers' own class{dropped}")
    changed = dict(_settings(theirs, {**found, **files}))
    if changed:
        old = read_json(found[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in found else {}
        files[TOKENIZER_CONFIG] = _written(TOKENIZER_CONFIG, json.dumps(old | changed, indent=2))
        told = ", ".join(f"{name} {value!r}" for name, value in changed.items() if name not in text.SPECIAL_TOKENS)
        notes += [f"{TOKENIZER_CONFIG} is written as transformers takes it: {told}"] if told else []
    return files, notes


def _settings(theirs: Any, files: Mapping[str, Path]) -> Iterator[tuple[str, Any]]:
    """The settings that transformers takes otherwise than bertc would read them: defaults of the tokenizer's class."""
    plain = {name: path for name, path in files.items() if name not in SENTENCE_FILES}
    ours = Encoder.from_files(plain)
    limit = theirs.model_max_length if theirs.model_max_length < 10**6 else None
    if limit != ours.max_length:
        yield "model_max_length", limit or int(1e30)
    if theirs.padding_side != ours.padding_side:
        yield "padding_side", theirs.padding_side
    if theirs.truncation_side != ours.truncation_side:
        yield "truncation_side", theirs.truncation_side
    if theirs.pad_token is not None and theirs.pad_token_id != ours.pad_id:
        yield "pad_token", theirs.pad_token
    if theirs.pad_token_type_id != ours.pad_type:
        yield "pad_token_type_id", theirs.pad_token_type_id
    if ("token_type_ids" in theirs.model_input_names) != ours.typed:
        yield "model_input_names", list(theirs.model_input_names)
    if frozenset(theirs.all_special_ids) - ours.special_ids:  # where a prompt ends depends on them
        yield from ((name, token) for name in text.SPECIAL_TOKENS if (token := getattr(theirs, name)) is not None)


def _not_read(error: Exception, found: Mapping[str, Path]) -> str:
    why = first_line(error)
    pieces = [name for name in found if name.endswith(".model")]
    if TOKENIZER in found:
        return f"the tokenizer is read from its files alone: transformers cannot load it ({why})"
    lacking = [name for name in ("sentencepiece", "protobuf") if machine.installed_version(name) is None]
    if pieces and lacking:
        return (
            f"no {TOKENIZER}, and {pieces[0]} is a SentencePiece file, which transformers converts with {' and '.join(lacking)}: "
            f"pip install {' '.join(lacking)}, and build again; the artifact takes ids alone"
        )
    return f"no {TOKENIZER}, and converting the slow tokenizer failed ({why}); the artifact takes ids alone"


def _normal_form(path: Path) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(path)).to_str())


def _meaning(content: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(content).items() if key not in STATE}


def _written(name: str, content: str) -> Path:
    target = _folder()
    (target / name).write_text(content, encoding="utf-8")
    return target / name


def _folder() -> Path:
    """One that lives as long as this process, one of multiprocessing too, where atexit does not run."""
    kept = contextlib.ExitStack()
    Finalize(None, kept.close, exitpriority=0)
    return kept.enter_context(scratch())


def _without_names(config: Path) -> str:
    """Take out of tokenizer_config.json what names other files and Python classes; returns the rest of a note that says so."""
    if not config.is_file():
        return ""
    settings = read_json(config, dict[str, Any])
    named = sorted(key for key in settings if key == "auto_map" or (key.endswith("_file") and settings[key] is not None))
    config.write_text(json.dumps({key: value for key, value in settings.items() if key not in named}), "utf-8")
    return f", without {', '.join(named)} of tokenizer_config.json" if named else ""
