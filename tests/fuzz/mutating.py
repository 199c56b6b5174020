"""Changes to a file of JSON, JSON lines or TOML that keep most of it: what a hand slips on, what another program writes, what an
attacker tries. `mutated(text, kind, rng)` says what it changed, so that a failure can be read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import tomli_w

NESTED = 100_000
HUGE = 10**400
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**30, HUGE, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "3", "true", "../x", "/etc/passwd", "x" * 5000, "\x1b[31m\u202e", "\0", "é\ud83d\ude00", [], {}, [None],
    ["x"], [1, 2, 3], [[[1]]], {"a": 1}, {"": None}, [{}], "1:2:3", "9:1:9", "-1:1:1",
)  # fmt: skip
NAMES = ("", "x", "fromat", "__class__", "../x", "a" * 300, "\u202e")
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "blank": lambda text: b" \n\n",
    "null": lambda text: b"null",
    "list": lambda text: b"[]",
    "list of it": lambda text: b"[" + text + b"]",
    "number": lambda text: b"3",
    "string": lambda text: b'"x"',
    "object": lambda text: b"{}",
    "first half": lambda text: text[: len(text) // 2],
    "all but the last character": lambda text: text.rstrip()[:-1],
    "more behind it": lambda text: text + b"}",
    "twice": lambda text: text + text,
    "nested lists": lambda text: b"[" * NESTED,
    "nested lists, closed": lambda text: b"[" * NESTED + b"]" * NESTED,
    "nested objects": lambda text: b'{"a":' * NESTED,
    "nested lists of TOML": lambda text: b"a = " + b"[" * NESTED,
    "nested tables of TOML": lambda text: b"a = " + b"{a=" * NESTED,
    "dotted key of TOML": lambda text: b".".join([b"a"] * NESTED) + b" = 1",
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode("utf-8").encode("utf-16"),
    "Latin-1": lambda text: b"\xe9\xff" + text,
    "null bytes": lambda text: b"\0" * 64,
    "digits": lambda text: b"9" * 10_000,
    "NaN": lambda text: b"NaN",
    "lone surrogate": lambda text: b'{"format": "\\ud800"}',
}


def mutated(text: bytes, kind: str, rng: random.Random) -> tuple[bytes, str]:
    """(the changed file, what was changed). `kind` is json, jsonl or toml."""
    if rng.random() < 0.15:
        name = rng.choice(list(WHOLE))
        return WHOLE[name](text), name
    if kind == "jsonl":
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        lines[at], what = mutated(lines[at], "json", rng)
        return b"\n".join(lines) + b"\n", f"line {at}: {what}"
    if kind == "toml":
        import tomllib

        made, what = changed(tomllib.loads(text.decode()), rng)
        try:
            return tomli_w.dumps(made).encode("utf-8", "surrogatepass"), what
        except (TypeError, ValueError, AttributeError):  # TOML has no null, and no number of 400 digits
            return text + b"\n= = =\n", "no TOML"
    if rng.random() < 0.1:
        return twice(text, rng)
    made, what = changed(json.loads(text), rng)
    return json.dumps(made).replace("-0.0", "-0").encode("utf-8", "surrogatepass"), what


def twice(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The first object with one of its keys a second time, of another value."""
    document = json.loads(text)
    keys = list(document) if isinstance(document, dict) else []
    if not keys:
        return text + b",", "a comma more"
    key = rng.choice(keys)
    more = json.dumps({key: rng.choice(VALUES)})[:-1]
    return (more + ", " + json.dumps(document)[1:]).encode("utf-8", "surrogatepass"), f"{key} twice"


def changed(document: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy with one change somewhere inside."""
    made = copy.deepcopy(document)
    places = list(_places(made))
    if not places:
        return rng.choice(VALUES), "all of it"
    holder, key, path = _shallow_first(places, rng)
    what = rng.choice(("replace",) * 6 + ("remove", "rename", "add", "wrap", "as text"))
    if what == "replace":
        holder[key] = value = copy.deepcopy(rng.choice(VALUES))
        return made, f"{path} = {value!r:.60}"
    if what == "remove":
        del holder[key]
        return made, f"{path} removed"
    if what == "wrap":
        holder[key] = [holder[key]]
        return made, f"{path} in a list"
    if what == "as text":
        holder[key] = str(holder[key])
        return made, f"{path} as text"
    if isinstance(holder, list):
        holder.append(copy.deepcopy(rng.choice(VALUES)))
        return made, f"beside {path}: one more"
    if what == "rename":
        name = key[:-1] if len(key) > 3 else key + "s"
        holder[name] = holder.pop(key)
        return made, f"{path} is called {name}"
    name = rng.choice(NAMES)
    holder[name] = copy.deepcopy(rng.choice(VALUES))
    return made, f"beside {path}: {name!r:.20}"


def _shallow_first(places: list[tuple[Any, Any, str]], rng: random.Random) -> tuple[Any, Any, str]:
    """Any place, but those of few levels as often as the many deep ones."""
    deep = rng.choice(sorted({path.count(".") + path.count("[") for *_, path in places}))
    return rng.choice([each for each in places if each[2].count(".") + each[2].count("[") == deep])


def _places(value: Any, path: str = "$") -> Iterator[tuple[Any, Any, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield value, key, f"{path}.{key}"
            yield from _places(each, f"{path}.{key}")
    elif isinstance(value, list):
        for at, each in enumerate(value[:4]):
            yield value, at, f"{path}[{at}]"
            yield from _places(each, f"{path}[{at}]")
