"""Gold labels: what a row of a user's file says, as what the model would have to answer. Class names come from the config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import ArtifactError, DataError, TensorSpec, did_you_mean
from .model_files import ModelConfig, TokenizerConfig
from .tables import Row
from .text_settings import read_config

TASKS = (
    *("sequence-classification", "token-classification", "question-answering", "sentence-embedding"),
    *("audio-classification", "ctc"),
)


@dataclasses.dataclass(frozen=True)
class GoldScore:
    """A number that a score should rank by: a similarity, or the relevance of a passage to `query`."""

    value: float
    query: str | None = None


@dataclasses.dataclass(frozen=True)
class PairText:
    """One text of a pair of which each is embedded alone; `pair` counts them, `graded` is the label of both."""

    pair: int
    graded: GoldScore | None


@dataclasses.dataclass(frozen=True)
class Tags:
    """Class ids of the words of a text, and for each the position of its first token in the row."""

    positions: tuple[int, ...]
    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answers:
    """Right answers in words, and where each position of the row lies in `context` (None: not in it). No texts: none is right.

    `answerable`: every question of the file has an answer, so "no answer" is nothing that a model may say.
    """

    context: str
    spans: tuple[tuple[int, int] | None, ...]
    texts: tuple[str, ...]
    answerable: bool = True


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is needed to read the labels of a task: class names, or the symbols of a CTC model."""

    task: str
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    classes: int | None = None  # None: not known before the model has run
    symbols: Mapping[int, str] = dataclasses.field(default_factory=dict)
    blank: int = 0
    delimiter: str = "|"

    @staticmethod
    def from_assets(task: str, assets: Sequence[Path], outputs: Sequence[TensorSpec] = ()) -> Labels:
        """Read config.json's id2label, and vocab.json for CTC. Raises ArtifactError for a damaged file."""
        files = {path.name: path for path in assets}
        config = read_config(files["config.json"], ModelConfig) if "config.json" in files else {}
        try:
            names = {int(key): str(name) for key, name in (config.get("id2label") or {}).items()}
        except (ValueError, AttributeError) as error:
            found = str(config["id2label"])[:60]
            raise ArtifactError(f"{files['config.json']}: id2label is {found!r}, not an object of numbers and names") from error
        widths = [spec.dims[-1] for spec in outputs if spec.dims]
        classes = widths[0] if len(widths) == 1 and isinstance(widths[0], int) else len(names) or None
        if task != "ctc" or "vocab.json" not in files:
            return Labels(task, names, classes)
        settings = read_config(files["tokenizer_config.json"], TokenizerConfig) if "tokenizer_config.json" in files else {}
        vocabulary = read_config(files["vocab.json"])
        pads = [number for number in (config.get("pad_token_id"), vocabulary.get("<pad>")) if isinstance(number, int)]
        delimiter = str(settings.get("word_delimiter_token") or "|")
        symbols = {int(number): str(token) for token, number in vocabulary.items() if isinstance(number, int)}
        return Labels(task, names, classes, symbols, pads[0] if pads else 0, delimiter)

    def unused(self) -> str:
        """Why labels are not used, "" where they are. DataError where what they need is not in the artifact."""
        if self.task not in TASKS:
            return f"labels are ignored: task {self.task!r} has no metric; these have: {', '.join(TASKS)}"
        if self.task == "ctc" and not self.symbols:
            raise DataError(
                "transcripts need the model's vocab.json, which the artifact lacks; put it beside the source and rebuild"
            )
        return ""

    def gold(self, row: Row, encoding: Any, shift: int) -> Any:
        """The label of one text row. `encoding` is its tokens (tokenizers.Encoding), beginning at position `shift`."""
        if self.task == "token-classification":
            return self._tags(row, encoding, shift)
        if self.task == "question-answering":
            return _answers(row, encoding, shift)
        if self.task == "sequence-classification" and self.classes == 1:
            return GoldScore(_number(row), row.text[0] if isinstance(row.text, tuple) else None)
        return self.class_id(row.label, row.where)

    def class_id(self, value: Any, where: str) -> int:
        """A class name, or else a class id. DataError for one the model does not have."""
        by_name = {name: number for number, name in self.names.items()}
        if isinstance(value, str) and value in by_name:
            return by_name[value]
        if isinstance(value, list | dict):
            raise DataError(f"{where} has a label of type {type(value).__name__}; expected one class, by name or id")
        try:
            number = int(value)
            whole = float(value) == number
        except (ValueError, TypeError, OverflowError):
            whole = False
        if whole and 0 <= number < (self.classes or math.inf):
            return number
        why = "" if by_name else "; the artifact has no class names (config.json's id2label): give ids"
        ids = f", or 0 to {self.classes - 1}" if self.classes else ""
        raise DataError(f"{where}: no class {value!r}{did_you_mean(str(value), by_name) if by_name else ''}{ids}{why}")

    def _tags(self, row: Row, encoding: Any, shift: int) -> Tags:
        given = row.label.split() if isinstance(row.label, str) else row.label
        if not isinstance(given, list) or len(given) != len(row.words):
            count = f"{len(given)} labels" if isinstance(given, list) else f"a label of type {type(given).__name__}"
            raise DataError(f"{row.where} has {count} for {len(row.words)} words; expected one label per word")
        ids = [self.class_id(value, row.where) for value in given]
        firsts = _first_tokens(str(row.text), row.words, encoding)
        kept = [(at + shift, number) for at, number in zip(firsts, ids, strict=True) if at is not None]
        if not kept:
            raise DataError(f"{row.where}: none of its words has a token; remove the row")
        return Tags(tuple(at for at, _ in kept), tuple(number for _, number in kept))

    def prepared(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows as they are encoded: pairs apart for a sentence embedding, answers parsed."""
        if self.task == "sentence-embedding":
            return _halves(rows)
        if self.task != "question-answering":
            return rows
        answers = [row if row.label is None else dataclasses.replace(row, label=_texts(row)) for row in rows]
        if all(row.label is None or row.label.texts for row in answers):
            return answers
        return [dataclasses.replace(row, label=dataclasses.replace(row.label, answerable=False)) for row in answers]

    def of_recordings(self, rows: Sequence[Row]) -> tuple[Sequence[Any], str]:
        """The labels of recordings: classes, or transcripts with a note."""
        if self.task == "audio-classification":
            return [None if row.label is None else self.class_id(row.label, row.where) for row in rows], ""
        return self.transcripts(rows)

    def transcripts(self, rows: Sequence[Row]) -> tuple[list[str], str]:
        """Transcripts in the case that the vocabulary has, spaces made single, and a note where the case was changed."""
        texts = [" ".join(row.label.split()) if isinstance(row.label, str) else "" for row in rows]
        for row, text in zip(rows, texts, strict=True):
            if not text:
                raise DataError(
                    f"{row.where} has a label that is not a transcript: {row.label!r:.60}; expected a string with words"
                )
        known = set("".join(self.symbols.values()))
        cases: dict[str, Callable[[str], str]] = {"as it is": str, "in upper case": str.upper, "in lower case": str.lower}
        fitting = {name: sum(letter in known for text in texts for letter in case(text)) for name, case in cases.items()}
        best = max(fitting, key=lambda name: fitting[name])
        note = "" if best == "as it is" else f"transcripts are compared {best}, as the vocabulary is"
        return [cases[best](text) for text in texts], note

    def spell(self, ids: Sequence[int]) -> str:
        """What a CTC model's symbols say, special ones left out."""
        tokens = [self.symbols.get(number, "") for number in ids]
        text = "".join(" " if token == self.delimiter else token for token in tokens if not token.startswith(("<", "[")))
        return " ".join(text.split())


def _number(row: Row) -> float:
    try:
        value = float(row.label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{row.where}: the label {row.label!r:.60} is not a number; this model gives one score per row")
    return value


def _first_tokens(text: str, words: Sequence[str], encoding: Any) -> list[int | None]:
    """The first token of each word by character offsets; None for a word that was cut off."""
    found: list[int | None] = []
    start, token = 0, 0
    for word in words:
        start = text.index(word, start)
        end = start + len(word)
        while token < len(encoding.ids) and (encoding.special_tokens_mask[token] or encoding.offsets[token][1] <= start):
            token += 1
        inside = token < len(encoding.ids) and encoding.offsets[token][0] < end
        found.append(token if inside else None)
        start = end
    return found


def _halves(rows: Sequence[Row]) -> list[Row]:
    """Each pair as two rows, for a model that embeds one text at a time. DataError for a labelled row that is no pair."""
    made = []
    for number, row in enumerate(rows):
        if row.label is not None and not isinstance(row.text, tuple):
            raise DataError(f"{row.where} has a label and no 'text_pair'; a sentence embedding is scored by pairs")
        texts = row.text if isinstance(row.text, tuple) else (row.text,)
        graded = GoldScore(_number(row), texts[0]) if row.label is not None else None
        half = PairText(number, graded) if graded else None
        made += [dataclasses.replace(row, text=text, label=half) for text in texts]
    return made


def _texts(row: Row) -> Answers:
    """SQuAD's {"text": [...]}, a list of strings or of {"text": ...}, or one string; an empty one says there is no answer."""
    given = row.label.get("text") if isinstance(row.label, dict) else row.label
    given = [given] if isinstance(given, str) else given
    texts = [each.get("text") if isinstance(each, dict) else each for each in given] if isinstance(given, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{row.where} has 'answers' {row.label!r:.60}; expected a list of strings, or SQuAD's {{'text': [...]}}")
    if not isinstance(row.text, tuple):
        raise DataError(f"{row.where} has a label and no 'question' and 'context'")
    return Answers(row.text[1], (), tuple(text for text in texts if text))


def _answers(row: Row, encoding: Any, shift: int) -> Answers:
    inside = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    spans = [tuple(offsets) if sequence == 1 else None for sequence, offsets in inside]
    return dataclasses.replace(row.label, spans=(None,) * shift + tuple(spans))
