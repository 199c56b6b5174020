"""Rows of labelled or unlabelled data from .jsonl, .csv and .tsv, checked: a misspelt column or a missing label is an error."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import DataError, parse_json
from .tokenizer import Text

SUFFIXES = (".jsonl", ".csv", ".tsv")
COLUMNS = ("text", "text_pair", "label", "tokens", "question", "context", "answers", "audio")
Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: its line in the file, the text or pair (a recording's path for audio), and the label as it was written."""

    line: int
    text: Text
    label: Any = None
    where: str = ""  # file and line, for a person
    words: tuple[str, ...] = ()  # what the labels of a token classification stand for


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file, all of them labelled or none, and what a reader should know."""

    rows: tuple[Row, ...]
    audio: bool = False
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Read a file with one of SUFFIXES.

    A row is `text` (and `text_pair`), `tokens`, `question` and `context`, or `audio`; its label is `label`, or `answers` where
    there is a question. Raises DataError for a broken line, a column of the wrong type, a name close to one of COLUMNS, or
    rows of which some have a label.
    """
    found = list(_fields(path))
    if not found:
        raise DataError(f"{path} is empty; give one row or more")
    rows = tuple(_row(path, line, fields) for line, fields in found)
    bare = [row.where for row in rows if row.label is None]
    if bare and len(bare) < len(rows):
        raise DataError(f"{bare[0]} has no label, and {len(rows) - len(bare)} of {len(rows)} rows have one; label all or none")
    audio = ["audio" in fields for _, fields in found]
    if any(audio) and not all(audio):
        raise DataError(f"{rows[audio.index(False)].where} has no 'audio', other rows of {path.name} have it")
    unused = sorted({name for _, fields in found for name in fields} - set(COLUMNS))
    note = (f"{path.name}: not used: {', '.join(unused)}",) if unused else ()
    return Table(rows, bool(audio and audio[0]), note)


def table_rows(path: Path) -> Iterator[Row]:
    """The rows of such a file one at a time, each checked by itself alone."""
    return (_row(path, line, fields) for line, fields in _fields(path))


def _fields(path: Path) -> Iterator[tuple[int, Fields]]:
    return _jsonl(path) if path.suffix.lower() == ".jsonl" else _separated(path)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not blank. Raises DataError for a file that is not UTF-8 text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ((at, line.strip()) for at, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it with iconv -t UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Fields]]:
    for at, line in lines(path):
        advice = 'expected a JSON object on each line, like {"text": ...}'
        yield at, parse_json(line, dict[str, Any], where=f"{path.name}:{at}", advice=advice, error=DataError)


def _separated(path: Path) -> Iterator[tuple[int, Fields]]:
    """Comma or tab separated values under a header. An empty label is none; lists are JSON, or words with spaces between."""
    for _ in lines(path):  # says what is wrong with a file that is no text
        pass
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for fields in reader:
                yield reader.line_num, _cells(f"{path.name}:{reader.line_num}", fields)
        except csv.Error as error:
            raise DataError(f"{path.name}:{reader.line_num} is not {path.suffix[1:]} ({error})") from error


def _cells(where: str, fields: dict[Any, Any]) -> Fields:
    if None in fields or None in fields.values():
        given = sum(value is not None for key, value in fields.items() if key is not None) + len(fields.get(None, ()))
        raise DataError(
            f"{where} has {given} cells, the header {sum(key is not None for key in fields)}; quote a cell with commas"
        )
    cells = {key: value for key, value in fields.items() if value != "" or key not in ("label", "text_pair", "answers")}
    for name in ("label", "answers", "tokens"):
        if str(cells.get(name, "")).startswith(("[", "{")):
            cells[name] = _json_cell(where, name, cells[name])
    if isinstance(cells.get("tokens"), str):
        cells["tokens"] = cells["tokens"].split()
    return cells


def _json_cell(where: str, name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        if name == "tokens":
            return cell.split()  # a text that begins with a bracket
        raise DataError(f"{where}: {name} {cell!r:.60} begins like JSON but is not valid; quote it in JSON") from None


def _check_columns(where: str, fields: Fields) -> None:
    for name in set(fields) - set(COLUMNS):
        close = difflib.get_close_matches(str(name).lower(), COLUMNS, n=1, cutoff=0.8)
        if close:
            raise DataError(f"{where} has a column {name!r}; did you mean {close[0]!r}? Known: {', '.join(COLUMNS)}")


def _row(path: Path, line: int, fields: Fields) -> Row:
    where = f"{path.name}:{line}"
    label = fields.get("label")
    words: tuple[str, ...] = ()
    text: Text
    if "audio" in fields:
        text = _string(where, fields, "audio")
    elif "question" in fields or "context" in fields:
        text, label = (_string(where, fields, "question"), _string(where, fields, "context")), fields.get("answers")
    elif "tokens" in fields:
        words = _words(where, fields["tokens"])
        text = " ".join(words)
    else:
        text = _string(where, fields, "text")
        words = tuple(text.split())
        text = text if fields.get("text_pair") is None else (text, _string(where, fields, "text_pair"))
    _check_columns(where, fields)
    return Row(line, text, label, where, words)


def _words(where: str, tokens: Any) -> tuple[str, ...]:
    if not isinstance(tokens, list) or not tokens or not all(isinstance(word, str) and word.strip() for word in tokens):
        raise DataError(f"{where} has 'tokens' that are not a list of words: {tokens!r:.60}")
    return tuple(tokens)


def _string(where: str, fields: Fields, name: str) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if name in fields and name != "text":
        raise DataError(f"{where} has a {name!r} of type {type(value).__name__}; expected a string")
    found = ", ".join(map(str, fields)) or "nothing"
    raise DataError(f"{where} has no string {name!r} (found {found}); expected text, and optional text_pair and label")
