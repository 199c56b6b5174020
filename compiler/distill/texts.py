"""Texts to learn from: read, without repetitions, split by their hash, and as token ids in batches of like lengths."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Advance, DataError, counted
from ..data import Encoder, Labels, Text, tables

LEAST = 20  # texts below which nothing is left to judge by
FEWEST, MOST = 8, 2000  # held-out texts
CHUNK = 512  # texts that are tokenised at a time
WINDOW = 32  # batches whose texts are sorted by length together: little padding, and an order that is still random


@dataclasses.dataclass(frozen=True)
class Example:
    """A text or a pair, and its label as it was written (None: it has none)."""

    text: Text
    row: tables.Row | None = None

    @property
    def key(self) -> bytes:
        """The hash that decides whether it is held out: the same text is on the same side in every run."""
        whole = self.text if isinstance(self.text, str) else "\0".join(self.text)
        return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Different texts, those that are held out apart, and notes on what was left out."""

    learned: tuple[Example, ...]
    held_out: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """One hash over all of them, in their order."""
        digest = hashlib.sha256()
        for example in (*self.learned, *self.held_out):
            digest.update(example.key + repr(example.row and example.row.label).encode())
        return digest.hexdigest()


def read_examples(path: Path) -> Iterator[Example]:
    """The rows of a file one at a time: a line each (.txt), or rows of .jsonl, .csv and .tsv."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise DataError(f"{path} {what}; --data and --labels take a file of texts: .txt, {', '.join(tables.SUFFIXES)}")
    if path.suffix.lower() in tables.SUFFIXES:
        for row in tables.table_rows(path):
            yield Example(row.text, row)
        return
    if path.suffix.lower() != ".txt":
        raise DataError(f"{path} ends with {path.suffix!r}; known: .txt, {', '.join(tables.SUFFIXES)}")
    for _, line in tables.lines(path):
        yield Example(line)


def read_texts(
    data: Path | None, labels: Path | None, share: float, held_out: Path | None = None, *, pairs: bool = False
) -> Texts:
    """All texts of the files, each once. `share` of them is held out, those of the least hashes; or those of a file `held_out`,
    which are then left out of the others.

    `pairs`: the model takes pairs as one text; else each half of a pair is a text. Raises DataError for too few of them.
    """
    found: dict[bytes, Example] = {}
    given = 0
    for path, labelled in ((labels, True), (data, False)):
        for example in read_examples(path) if path else ():
            for each in _halves(example, pairs or labelled):
                given += 1
                if labelled and (each.row is None or each.row.label is None):
                    raise DataError(f"{each.row.where if each.row else path} has no label; --labels takes labelled rows")
                found.setdefault(each.key, each if labelled else Example(each.text))
    notes = [f"{counted(given - len(found), 'text')} of {given} left out: given before"] if given > len(found) else []
    if held_out is not None:
        kept = {each.key: each for example in read_examples(held_out) for each in _halves(example, pairs)}
        both = kept.keys() & found.keys()
        notes += [f"{counted(len(both), 'text')} left out of the training: held out by {held_out}"] if both else []
        rest = [each for key, each in found.items() if key not in kept]
        return _enough(rest, list(kept.values())[:MOST], notes, str(data or labels))
    ordered = sorted(found)
    count = min(MOST, max(FEWEST, round(share * len(ordered))))
    kept_keys = set(ordered[:count])
    rest, kept_rows = ([e for k, e in found.items() if (k in kept_keys) is side] for side in (False, True))
    return _enough(rest, kept_rows, notes, str(data or labels))


def _halves(example: Example, whole: bool) -> Sequence[Example]:
    if whole or isinstance(example.text, str):
        return (example,)
    return tuple(Example(text, None) for text in example.text)


def _enough(learned: list[Example], held_out: list[Example], notes: list[str], where: str) -> Texts:
    if len(learned) + len(held_out) < LEAST or not learned or len(held_out) < 2:
        raise DataError(
            f"{where} has {counted(len(learned) + len(held_out), 'different text')}, of which {len(held_out)} would be held out; "
            f"distilling needs {LEAST} or more (thousands to be of use), and something to learn from and to judge by"
        )
    return Texts(tuple(learned), tuple(held_out), tuple(notes))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows of token ids without padding, as a model takes them; `labels` by row, where there are any."""

    rows: tuple[Mapping[str, np.ndarray], ...]
    encoder: Encoder
    labels: tuple[Any, ...] = ()
    cut: int = 0

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self.rows])

    def batch(self, chosen: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """int64 arrays [rows, longest of them], padded as the tokenizer pads."""
        rows = [self.rows[at] for at in chosen]
        longest = max(len(row["input_ids"]) for row in rows)
        made = {}
        for name in rows[0]:
            pad = {"input_ids": self.encoder.pad_id, "token_type_ids": self.encoder.pad_type}.get(name, 0)
            array = np.full((len(rows), longest), pad, np.int64)
            for filled, row in zip(array, rows, strict=True):
                left = self.encoder.padding_side == "left"
                filled[slice(longest - len(row[name]), None) if left else slice(len(row[name]))] = row[name]
            made[name] = array
        return made


def encode(examples: Sequence[Example], encoder: Encoder, advance: Advance, labels: Labels | None = None) -> Encoded:
    """Token ids of each text as int32, and its label in the model's classes."""
    rows: list[Mapping[str, np.ndarray]] = []
    gold: list[Any] = []
    cut = 0
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        found = encoder.encode_counted([each.text for each in chunk])
        cut += found.truncated
        for at, (encoding, shift) in enumerate(found.tokens):
            real = slice(shift, shift + len(encoding.ids))
            rows.append({name: array[at, real].astype(np.int32) for name, array in found.feeds.items()})
            row = chunk[at].row
            gold.append(labels.gold(row, encoding, 0) if labels and row is not None and row.label is not None else None)
        advance(start + len(chunk), len(examples))
    return Encoded(tuple(rows), encoder, tuple(gold), cut)


def batches_of(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of one epoch in batches of like lengths, in an order that seed and epoch alone decide.

    The last, smaller batch is dropped where there are others: its few texts would weigh more.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    made: list[np.ndarray] = []
    for start in range(0, len(order), size * WINDOW):
        window = order[start : start + size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        made += [window[at : at + size] for at in range(0, len(window), size)]
    whole = [each for each in made if len(each) == size] or made
    return [whole[at] for at in random.permutation(len(whole))]
