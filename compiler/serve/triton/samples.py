"""Goldens as Triton takes them: warm-up requests, and what verify.py sends and wants to get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...artifact import Artifact, goldens
from ...core import BertcError, Feeds, Outputs
from ...data import Encoder, Text
from ...verification import load_runner
from .config_file import type_value

WARMUPS = 4
TEXTS = ("one", "a second text, of more words than the first one has", "Zürich 東京", "word " * 40)
SECOND = "what stands beside it"


@dataclasses.dataclass(frozen=True)
class Golden:
    """A request and its answer. `where`: what is compared of an output: [rows] or [rows, length] bool."""

    feeds: Feeds
    outputs: Outputs
    where: Mapping[str, np.ndarray]


def golden_samples(found: Artifact, most: int) -> list[Golden]:
    """The goldens of an artifact, in requests of up to `most` rows (0: as they are)."""
    made = []
    for sample, outputs in zip(*goldens.load_goldens(found.goldens), strict=True):
        count = len(next(iter(sample.feeds.values())))
        where = {name: _compared(found, name, array, sample.feeds, sample.dead_rows) for name, array in outputs.items()}
        size = most or count
        for at in range(0, count, size) if most else (0,):
            rows = slice(at, at + size) if most else slice(None)
            made.append(Golden(_cut(sample.feeds, rows), _cut(outputs, rows), _cut(where, rows)))
    return made


def _cut(arrays: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in arrays.items()}


def _compared(found: Artifact, name: str, array: np.ndarray, feeds: Feeds, dead: Sequence[int]) -> np.ndarray:
    """Not rows without a token, nor padding: what stands there means nothing."""
    rows = np.ones(array.shape[:1], bool)
    rows[[row for row in dead if row < len(rows)]] = False
    dims = next(spec.dims for spec in found.outputs if spec.name == name)
    mask = feeds.get("attention_mask")
    if mask is None or mask.ndim != 2 or len(dims) < 2 or mask.shape != array.shape[:2] or not isinstance(dims[1], str):
        return rows
    return rows[:, None] & (mask > 0)


def limits_of(found: Artifact) -> dict[str, float]:
    """The limits of closeness that the artifact was verified within."""
    budget = found.manifest.get("budget") or {}
    return {name: float(budget[name]) for name in ("rel", "cosine", "sqnr_db") if budget.get(name) is not None}


def add_warmup(message: Any, folder: Path, taken: Sequence[Golden]) -> None:
    """Requests that the server runs before the model is ready: the first row of goldens of different shapes."""
    seen: set[str] = set()
    batched = message.max_batch_size > 0
    # The largest first: the Python model looks at what the first one becomes on its way.
    for at, golden in sorted(enumerate(taken), key=lambda each: -max(array[0].size for array in each[1].feeds.values())):
        shape = repr([array.shape for array in golden.feeds.values()])
        if shape in seen or len(seen) >= WARMUPS:
            continue
        seen.add(shape)
        (folder / "warmup").mkdir(exist_ok=True)
        rows = len(next(iter(golden.feeds.values())))
        warmup = message.model_warmup.add(name=f"golden_{at}", batch_size=rows if batched else 1)
        for name, array in golden.feeds.items():
            one = array[0] if batched else array
            file = f"golden_{at}.{name}"
            np.ascontiguousarray(one).astype(array.dtype.newbyteorder("<")).tofile(folder / "warmup" / file)
            given = warmup.inputs[name]
            given.data_type = type_value(array.dtype.name)
            given.input_data_file = file
            given.dims.extend(one.shape)


def write(folder: Path, model: str, taken: Sequence[Golden], limits: Mapping[str, float], described: dict[str, Any]) -> None:
    """goldens/MODEL.npz and its entry of models.json."""
    arrays: dict[str, Any] = {}
    for at, golden in enumerate(taken):
        for kind, part in (("in", golden.feeds), ("out", golden.outputs), ("at", golden.where)):
            arrays |= {f"{at}/{kind}/{name}": array for name, array in part.items()}
    np.savez(folder / f"{model}.npz", **arrays)
    described[model] = {"file": f"{model}.npz", "limits": dict(limits)}


def write_texts(
    folder: Path, found: Artifact, encoder: Encoder, engine: Any, kinds: Mapping[str, bool], described: dict[str, Any]
) -> list[str]:
    """The same for the models that take texts: ids as bertc makes them, outputs as the engine gives them on this machine."""
    try:
        runner, why = load_runner(found.path), ""
    except BertcError as error:
        runner, why = None, str(error)
    for kind, two in kinds.items():
        texts: list[Text] = [(text, SECOND) if two else text for text in TEXTS][: engine.max_batch_size]
        feeds = encoder.encode(texts)
        given = {"TEXT": np.array([[text[0] if isinstance(text, tuple) else text] for text in texts])}
        given |= {"TEXT_PAIR": np.array([[SECOND]] * len(texts))} if two else {}
        name = f"{engine.name}_tokenizer{'_pairs' if two else ''}"
        write(folder, name, [Golden(given, feeds, {})], {"equal": 1.0}, described)
        described[name]["model"] = f"{engine.name}_tokenizer"
        if runner is not None:
            outputs = runner.run(feeds)
            where = {key: _compared(found, key, array, feeds, ()) for key, array in outputs.items()}
            write(folder, f"{engine.name}_{kind}", [Golden(given, outputs, where)], limits_of(found), described)
    if why:
        return [f"verify.py compares the ids of texts, and not what the ensemble makes of them: {why}"]
    return []
