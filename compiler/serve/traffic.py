"""Real requests, as a histogram of their shapes: batch size by the length of the longest member.

A file of lengths is one number a line, or `LENGTH COUNT`. A .jsonl file has a request a line: {"length": 17},
{"lengths": [17, 30]} (one batch of two), {"text": "..."} (with "text_pair" for a pair) or {"texts": [...]} (one batch), each
with "count" where it came more than once. Other fields are a log's own and are not read. Memory grows with the shapes, not the
requests.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import DataError, InputError, parse_json
from ..data import Text, preprocess, tables

if TYPE_CHECKING:
    from ..data import Encoder
    from ..source import SourceOptions

FORMS = ("length", "lengths", "text", "texts")
TOGETHER = 256  # texts that are tokenized at once
MOST_TOKENS = 2**60  # of all requests padded to the longest, so that no sum leaves int64
Shape = tuple[int, int]  # members of the request, tokens of the longest
Request = tuple[Sequence[int], int]  # the length of each member, and how often the request came


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests by shape: int64 arrays [shapes], ordered by `longest`, then `batch`.

    `batch` is the number of members of a request, `longest` the tokens of its longest member, `count` how many requests had
    that shape, `tokens` the tokens of all their members without any padding.
    """

    batch: np.ndarray
    longest: np.ndarray
    count: np.ndarray
    tokens: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> np.ndarray:
        """Members of all requests of a shape, int64 [shapes]."""
        return self.batch * self.count

    @property
    def padded_in_batches(self) -> int:
        """Tokens of padding that each batch needs to be one array, whatever the buckets."""
        return int((self.rows * self.longest).sum() - self.tokens.sum())


def read_traffic(path: Path, limit: int | None = None, encode: Encoder | None = None) -> Traffic:
    """The requests of a file. `limit` is the model's longest length; texts need `encode` and are cut to what it allows.

    Raises DataError naming the line for one that is malformed, a length below 1 or over `limit`, or a text without `encode`;
    and for a file without requests.
    """
    totals: dict[Shape, list[int]] = collections.defaultdict(lambda: [0, 0])
    texts = _PendingTexts(encode)
    for lengths, count in _requests(path, limit, texts):
        total = totals[len(lengths), max(lengths)]
        total[0] += count
        total[1] += count * sum(lengths)
    if not totals:
        raise DataError(f"{path} holds no requests")
    longest = max(shape[1] for shape in totals)
    if sum(total[0] * shape[0] for shape, total in totals.items()) * longest > MOST_TOKENS:
        raise DataError(f"{path}: the counts come to more than {MOST_TOKENS:.0e} tokens; divide them by a common number")
    return _traffic(totals, texts.notes(path))


def read_requests(path: Path, limit: int | None = None, encode: Encoder | None = None) -> tuple[list[Request], tuple[str, ...]]:
    """(each line's lengths and count, in their order, notes): `read_traffic` without adding up. Raises as it does."""
    texts = _PendingTexts(encode)
    found = list(_requests(path, limit, texts))
    if not found:
        raise DataError(f"{path} holds no requests")
    return found, texts.notes(path)


def _requests(path: Path, limit: int | None, texts: _PendingTexts) -> Iterator[Request]:
    if not path.is_file():
        raise InputError(f"no requests at {path}; give a file of lengths, one a line, or requests as .jsonl")
    found = _json_requests(path, texts) if path.suffix.lower() == ".jsonl" else _number_requests(path)
    for at, (lengths, count) in found:
        _check(f"{path.name}:{at}", lengths, count, limit)
        yield lengths, count


def _traffic(totals: Mapping[Shape, Sequence[int]], notes: tuple[str, ...]) -> Traffic:
    ordered = sorted(totals.items(), key=lambda item: (item[0][1], item[0][0]))
    columns = np.array([(batch, longest, *total) for (batch, longest), total in ordered], np.int64).T
    batch, longest, count, tokens = (np.ascontiguousarray(column) for column in columns)
    return Traffic(batch, longest, count, tokens, notes)


def _check(where: str, lengths: Sequence[int], count: int, limit: int | None) -> None:
    if count < 1 or min(lengths) < 1:
        wrong = f"a count of {count}" if count < 1 else f"a length of {min(lengths)}"
        raise DataError(f"{where} has {wrong}; lengths and counts are whole numbers from 1 on")
    if limit is not None and max(lengths) > limit:
        raise DataError(f"{where} has a length of {max(lengths)}, over the longest, {limit}; truncate it as your service does")


def _number_requests(path: Path) -> Iterator[tuple[int, Request]]:
    for at, line in tables.lines(path):
        words = line.split()
        if len(words) > 2 or not all(word.isascii() and word.isdecimal() for word in words):
            raise DataError(f"{path.name}:{at} is {line[:60]!r}; wanted LENGTH or LENGTH COUNT in whole numbers (texts: .jsonl)")
        yield at, ((int(words[0]),), int(words[1]) if len(words) == 2 else 1)


def _json_requests(path: Path, texts: _PendingTexts) -> Iterator[tuple[int, Request]]:
    """Requests in the order they are known: those of texts when enough were collected to tokenize them together."""
    for at, line in tables.lines(path):
        where = f"{path.name}:{at}"
        fields = _object(where, line)
        form, count = _form(where, fields), fields.get("count", 1)
        if not _is_whole(count):
            raise DataError(f"{where} has a count of {count!r}; wanted a whole number from 1 on")
        if form in ("length", "lengths"):
            yield at, (_lengths(where, form, fields[form]), count)
        else:
            yield from texts.add(where, at, _texts(where, form, fields), count)
    yield from texts.flush()


def _object(where: str, line: str) -> Mapping[str, Any]:
    advice = 'wanted an object on each line, like {"length": 17}'
    return dict(parse_json(line, dict[str, Any], where=where, advice=advice, error=DataError))


def _form(where: str, fields: Mapping[str, Any]) -> str:
    named = [form for form in FORMS if form in fields]
    if len(named) != 1:
        found = ", ".join(map(str, fields)) or "nothing"
        raise DataError(f"{where} has {found}; wanted one of {', '.join(FORMS)}")
    return named[0]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lengths(where: str, form: str, value: Any) -> Sequence[int]:
    lengths = [value] if form == "length" else value
    if not isinstance(lengths, list) or not lengths or not all(map(_is_whole, lengths)):
        wanted = "a whole number" if form == "length" else "a list of whole numbers, one or more"
        raise DataError(f"{where} has a {form!r} of {value!r:.60}; wanted {wanted}")
    return lengths


def _texts(where: str, form: str, fields: Mapping[str, Any]) -> list[Text]:
    """The members of a request: strings, or pairs of them."""
    value = fields[form]
    members = value if form == "texts" else [value if fields.get("text_pair") is None else [value, fields["text_pair"]]]
    found = [tuple(each) if isinstance(each, list) else each for each in members] if isinstance(members, list) else []
    strings = all(isinstance(part, str) for each in found for part in (each if isinstance(each, tuple) else (each,)))
    if not found or not strings or any(isinstance(each, tuple) and len(each) != 2 for each in found):
        raise DataError(f"{where} has {form!r} {value!r:.60}; wanted a string, and in 'texts' a list of strings or pairs of them")
    return found


class _PendingTexts:
    """Texts waiting to be tokenized, and how many were cut."""

    def __init__(self, encode: Encoder | None) -> None:
        self._encode = encode
        self._pending: list[tuple[str, int, list[Text], int]] = []
        self._pending_texts = self._cut = self._total = 0

    def add(self, where: str, at: int, texts: list[Text], count: int) -> Iterable[tuple[int, Request]]:
        if self._encode is None:
            raise DataError(f"{where} holds text, and there is no tokenizer for it; give --source MODEL, or lengths")
        self._pending.append((where, at, texts, count))
        self._pending_texts += len(texts)
        return self.flush() if self._pending_texts >= TOGETHER else ()

    def flush(self) -> Sequence[tuple[int, Request]]:
        """The requests that were waiting, with the lengths of their members."""
        if not self._pending or self._encode is None:
            return []
        encoded = self._encode.encode_counted([text for _, _, texts, _ in self._pending for text in texts])
        lengths = iter(len(encoding.ids) for encoding, _ in encoded.tokens)
        found = [(at, ([next(lengths) for _ in texts], count)) for _, at, texts, count in self._pending]
        self._cut += encoded.truncated
        self._total += self._pending_texts
        self._pending, self._pending_texts = [], 0
        return found

    def notes(self, path: Path) -> tuple[str, ...]:
        if self._encode is None:
            return ()
        cut = f"{path.name}: {self._cut} of {self._total} texts were longer than {self._encode.max_length} tokens and were cut"
        return self._encode.notes + ((cut,) if self._cut else ())


@dataclasses.dataclass(frozen=True)
class TrafficModel:
    """What of a model matters to its requests: what its two dims are called, their limits, and its tokenizer."""

    length: str = "length"
    batch: str | None = "batch"
    shortest: int = 1
    longest: int | None = None
    smallest_batch: int = 1
    largest_batch: int | None = None
    encode: Encoder | None = None


def traffic_model(reference: str, options: SourceOptions | None = None) -> TrafficModel:
    """The limits and the tokenizer of a source, which is exported for it, or of an artifact or an export, which is only read.

    Raises InputError for a model with more than one dimension beside the batch, and what opening it raises."""
    from ..artifact import manifest as artifact
    from ..data import batch_dim
    from ..source import open_source

    path = Path(reference)
    is_artifact = (path / artifact.MANIFEST).is_file()
    found: Any = artifact.open_artifact(path) if is_artifact else open_source(reference, options)
    inputs = found.inputs if is_artifact else found.graph.inputs
    batch = batch_dim(inputs, found.dims)
    others = [name for name in found.dims if name != batch]
    if len(others) != 1:
        named = ", ".join(others) or "none"
        raise InputError(
            f"{reference} has {len(others)} dimensions beside the batch ({named}); buckets need exactly one, the length"
        )
    length = found.dims[others[0]]
    _, encode, _ = preprocess.preprocessors(inputs, found.dims, found.assets)
    rows = found.dims.get(batch or "")
    low, high = (rows.min, rows.max) if rows else (1, 1)
    return TrafficModel(others[0], batch if rows else None, length.min, length.max, low, high, encode)
