"""Files of JSON and TOML that people or other machines write: read in one way, held against a type (msgspec), bounded.

Whatever is wrong with one is an error of bertc that names the file, the key as `$.profiles[0].min`, what was found and what may
stand there. A type is a struct or a TypedDict; keys that a type does not name are let through by a TypedDict, and refused, with
the nearest one, by a struct that forbids them.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .errors import ArtifactError, BertcError, InputError, did_you_mean, what_is_wrong

MOST_BYTES = 64 * 2**20  # of a JSON file; a manifest has 10 KiB, a lock of a thousand entries 2 MiB, the largest tokenizer 40
MOST_TOML = 2**20
MOST_DEPTH = 100  # objects and lists inside each other; what reads them calls itself
SHOWN = 60  # characters of a value that an error shows
# `a.b.c ... = 1`: tomllib takes the square of the number of parts, and makes a table inside a table of each.
DOTTED = re.compile(rb"(?<![\w-])(?:(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')[ \t]*\.[ \t]*){%d}" % MOST_DEPTH)
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
KINDS = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "an object"),
)


def read_json(
    path: Path,
    kind: Any = Any,
    *,
    advice: str = "",
    error: type[BertcError] = InputError,
    most: int = MOST_BYTES,
    finite: bool = False,
) -> Any:
    """What a JSON file says, as plain Python; held against `kind`. Raises `error` ending in `advice`.

    `finite`: NaN, Infinity and 1e999 are no numbers of a file that was measured.
    """
    text = _bytes(path, most, advice, error)
    return parse_json(text, kind, where=str(path), advice=advice, error=error, finite=finite)


def read_json_lines(
    path: Path, kind: Any = Any, *, advice: str = "", error: type[BertcError] = InputError, most: int = MOST_BYTES
) -> list[Any]:
    """The values of a file with one in each line, each held against `kind`."""
    lines = enumerate(_bytes(path, most, advice, error).splitlines(), 1)
    return [parse_json(line, kind, where=f"{path}, line {at}", advice=advice, error=error) for at, line in lines if line.strip()]


def parse_json(
    text: bytes | str,
    kind: Any = Any,
    *,
    where: str,
    advice: str = "",
    error: type[BertcError] = InputError,
    finite: bool = False,
) -> Any:
    """The same of a text; `where` is what an error names."""
    numbers: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite} if finite else {}
    try:
        found = json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_once, **numbers)
        _check_depth(found)
    except (ValueError, RecursionError) as why:
        raise error(_joined(f"{_begun(where, error)} {_not_json(why)}", advice)) from why
    require(_whole(found), kind, where=where, advice=advice, error=error)
    return found


def _whole(found: Any) -> Any:
    """`found` as msgspec can take it: a name of a file that is no UTF-8 is half of a character in JSON, and bertc writes it."""
    try:
        msgspec.json.encode(found)
    except UnicodeEncodeError:
        return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (OverflowError, RecursionError):  # `require` says it
        pass
    return found


def read_toml(path: Path, kind: Any = Any, *, advice: str = "", error: type[BertcError] = InputError) -> Any:
    """What a TOML file says, as plain Python, or as the struct that `kind` is."""
    text = _bytes(path, MOST_TOML, advice, error)
    try:
        if DOTTED.search(text):
            raise ValueError(f"a key in it has more than {MOST_DEPTH} parts")
        found = tomllib.loads(text.decode("utf-8"))
        _check_depth(found)
    except (ValueError, RecursionError) as why:
        raise error(_joined(f"{path} is not TOML: {what_is_wrong(why)}", advice)) from why
    return found if kind is Any else require(found, kind, where=str(path), advice=advice, error=error)


def require(found: Any, kind: Any, *, where: str, advice: str = "", error: type[BertcError] = InputError) -> Any:
    """`found` as `kind`. Raises `error` naming the key, what was found there and what may be."""
    try:
        return msgspec.convert(found, kind)
    except UnicodeEncodeError as why:
        half = why.object[why.start].encode("unicode_escape").decode()
        raise error(_joined(f"{_told(where, error)}: a text in it holds {half}, half of a character", advice)) from why
    except (msgspec.ValidationError, OverflowError) as why:
        raise error(_joined(f"{_told(where, error)}: {_explained(found, kind, str(why))}", advice)) from why


def field_names(kind: Any) -> set[str]:
    """The keys that a struct and the structs in its fields know."""
    names: set[str] = set()
    left = [msgspec.inspect.type_info(kind)]
    while left:
        each = left.pop()
        for field in getattr(each, "fields", ()):
            names.add(field.encode_name)
            left.append(field.type)
        left += [part for name in ("item_type", "value_type", "types") for part in _several(getattr(each, name, ()))]
    return names


def _several(value: Any) -> Iterable[Any]:
    return value if isinstance(value, tuple) else (value,)


def _bytes(path: Path, most: int, advice: str, error: type[BertcError]) -> bytes:
    try:
        with path.open("rb") as file:  # in pieces: what is no file, or grows, has no size to ask for, and a read takes all it may
            text = bytearray()
            while len(text) <= most and (piece := file.read(2**20)):
                text += piece
    except OSError as why:
        raise error(_joined(f"cannot read {path}: {why.strerror}", advice)) from why
    if len(text) > most:
        raise error(_joined(f"{path} cannot be read: it is larger than {most // 2**20} MiB", advice))
    return bytes(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one key, readers take either one: a file that says two things is refused."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} stands in it twice")
    return made


def _finite(literal: str) -> float:
    if not math.isfinite(float(literal)):
        raise ValueError(f"{literal[:40]} is not a finite number")
    return float(literal)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [each for part in level if isinstance(part, (dict, list)) for each in _inside(part)]
        if not level:
            return
    raise ValueError(f"it is nested too deeply: more than {MOST_DEPTH} objects and lists inside each other")


def _inside(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part


def _not_json(why: BaseException) -> str:
    if str(why).startswith("Unexpected UTF-8 BOM"):
        return "it begins with a byte order mark; save it as UTF-8 without one"
    if "integer string conversion" in str(why):
        return "a number in it has thousands of digits"
    return what_is_wrong(why)


def _told(where: str, error: type[BertcError]) -> str:
    """Files of an artifact were written by bertc: what is wrong there came later."""
    return f"{where} is damaged" if issubclass(error, ArtifactError) else where


def _begun(where: str, error: type[BertcError]) -> str:
    return f"{_told(where, error)}:" if issubclass(error, ArtifactError) else f"{where} cannot be read:"


def _joined(said: str, advice: str) -> str:
    return f"{said}; {advice}" if advice else said


def _explained(found: Any, kind: Any, message: str) -> str:
    """msgspec's message in our order: key, what was found, what may be."""
    said, _, at = message.partition(" - at `")
    path = at.rstrip("`") or "$"
    path = path.removeprefix("key in `").replace("key` in `", "")
    while "[...]" in path:
        path = _named(found, kind, path, message)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", said)
    if unknown:
        return f"{path} has an unknown key {unknown[1]!r:.{SHOWN}}{did_you_mean(unknown[1], field_names(kind))}"
    missing = re.fullmatch(r"Object missing required field `(.*)`", said)
    if missing:
        return f"{path} lacks {missing[1]!r}"
    value = value_at(found, path)
    shown = f"{_kind_of(value)} ({shown_value(value)})" if value is not None else "null"
    return f"{path} is {shown}, wants {_wants(said)}"


def _wants(said: str) -> str:
    """`Expected `int | null`, got `str`` -> a whole number or null; what msgspec says of a range stays as it is."""
    found = re.match(r"Expected `([^`]*)`(.*)", said)
    if not found:
        return said
    kinds = " or ".join(WANTED.get(each, each) for each in found[1].split(" | "))
    return kinds + re.sub(r", got `[^`]*`$", "", found[2])


def _named(found: Any, kind: Any, path: str, message: str) -> str:
    """The path with the first `[...]`, any value of an object, in its place: the key without which the error is another one."""
    before, _, behind = path.partition("[...]")
    table = value_at(found, before)
    for key in table if isinstance(table, Mapping) else ():
        try:
            msgspec.convert(_with(found, _steps(before), {key: table[key]}), kind)
        except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
            if str(error) == message:
                return f"{before}.{key}{behind}" if re.fullmatch(r"[\w-]+", str(key)) else f"{before}[{json.dumps(key)}]{behind}"
    return f"{before}.*{behind}"


def _steps(path: str) -> list[str | int]:
    found = re.findall(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\"(?:[^\"\\]|\\.)*\")\]", path)
    return [int(at) if at else json.loads(quoted) if quoted else name for name, at, quoted in found]


def _with(value: Any, steps: list[str | int], new: Any) -> Any:
    if not steps:
        return new
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[steps[0]] = _with(value[steps[0]], steps[1:], new)  # type: ignore[index]
    return copy


def value_at(found: Any, path: str) -> Any:
    """The value at `$.a[0].b`; None where there is none."""
    for step in _steps(path):
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def _kind_of(value: Any) -> str:
    return next((name for kind, name in KINDS if isinstance(value, kind)), type(value).__name__)


def shown_value(value: Any) -> str:
    """A value for an error, cut short."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return repr(text) if isinstance(value, str) else text
