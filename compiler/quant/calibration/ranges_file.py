"""The ranges file of calibration: readable, mergeable, and the checkpoint of an interrupted run.

    {"format": 1, "bertc": ..., "tools": {...},
     "source": {"reference", "sha256", "task"}, "graph": {"form", "sha256"},
     "settings": {"method", "percentile", "outlier"},
     "data": [{"name", "sha256", "parts": ["1/4", "3/4"]}],     parts 1/1: all of it
     "samples", "tokens", "truncated", "dead",                   dead: samples without a place that is not padding, left out
     "tensors": {NAME: {
         "status": ok | constant | not finite | unmeasured,      only ok has a range
         "range": by the method of the settings, "ranges": by each method (magnitudes to clip at, symmetric),
         "min", "max", "values", "nan", "infinite", "masked", "skipped",
         "op", "module", "dims", "axis", "cut", "by_channel",
         "outliers": {channel: times the median}, "channel_max": [...], "channel_ranges": [...],
         "histogram": {"exponent": e, "counts": "12 7 0*5 1"},   bins 2^e wide from 0 up, a run of five empty ones as 0*5
         "channel_histograms": [...]}}}

What the counts say (status, range, ranges, outliers, channel_ranges) is written for the reader and computed anew when read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from ...core import DataError, available_bytes, disk_errors, what_is_wrong
from ...core import read_json as read_json_file
from .json_values import members, number, text, whole
from .statistics import Settings, Statistics, check_settings

FORMAT = 1
MOST_BYTES = 2**30  # per channel, of a large model; less where the memory is smaller
PARSED = 8  # bytes of memory that a byte of JSON takes while it is read: every number is an object
TOTALS = ("samples", "tokens", "truncated", "dead")
HEAD = ("bertc", "tools", "source", "graph", "settings", "data", *TOTALS, "tensors")


@dataclasses.dataclass(frozen=True)
class Ranges:
    """`facts` is the head of the file without settings, totals and tensors."""

    facts: Mapping[str, Any]
    settings: Settings
    tensors: Mapping[str, Statistics]
    totals: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(TOTALS, 0))

    def range_of(self, name: str) -> float | None:
        """The magnitude to clip a tensor at by the method of the settings; None when it must not be quantised or is not known."""
        found = self.tensors.get(name)
        return None if found is None else found.ranges(self.settings.percentile).get(self.settings.method)

    def to_json(self) -> dict[str, Any]:
        """The counts alone: a checkpoint."""
        head = {"format": FORMAT, **self.facts, "settings": dataclasses.asdict(self.settings), **self.totals}
        return head | {"tensors": {name: self.tensors[name].to_json() for name in sorted(self.tensors)}}

    def document(self) -> dict[str, Any]:
        """The counts, and what follows from them."""
        data = self.to_json()
        tensors = {name: self.tensors[name].derived(self.settings) | each for name, each in data["tensors"].items()}
        return data | {"tensors": tensors}


def write(found: Ranges, path: Path) -> None:
    """Write the file, whole or not at all."""
    _write(found.document(), path)


def write_checkpoint(found: Ranges, path: Path, done: int) -> None:
    """Write the counts after `done` samples, whole or not at all; not what follows from them, which takes time."""
    _write(found.to_json() | {"done": done}, path)


def _write(data: Mapping[str, Any], path: Path) -> None:
    """Write it beside, and rename.

    What a killed process leaves has always the same name, so that the next one takes it away (`remove`, for a checkpoint).
    """
    text = _readable(data) + "\n"
    beside = _beside(path)
    try:
        with disk_errors(path):
            beside.write_text(text, "utf-8")
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file of ranges, and what a process that was killed while writing it left."""
    for file in (path, _beside(path)):
        file.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _readable(value: Any, depth: int = 0) -> str:
    """JSON with a key a line and a list on one line, as long as it may be."""
    if not isinstance(value, dict) or not value or (depth > 2 and not any(isinstance(v, dict) for v in value.values())):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = " " * (depth + 1)
    lines = (f"{pad}{json.dumps(key, ensure_ascii=False)}: {_readable(each, depth + 1)}" for key, each in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"


class File(TypedDict):
    """What must be there before the format is known; `parse` looks at the rest."""

    format: Annotated[int, Meta(ge=1, le=2**53)]
    tensors: dict[str, Any]


def read(path: Path) -> Ranges:
    """Read a file of ranges. DataError when it is missing, damaged, none, or of a newer format."""
    return parse(read_json(path), path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        size, free = path.stat().st_size, available_bytes()
        if free is not None and size * PARSED > free:
            raise DataError(
                f"{path} has {size / 2**20:.0f} MiB, which takes {size * PARSED / 2**30:.1f} GiB to read; this machine has "
                f"{free / 2**30:.1f} GiB of memory free"
            )
    except OSError as error:
        raise DataError(f"cannot read the ranges {path}: {error.strerror}") from error
    advice = "it is not a file of ranges, which bertc calibrate writes"
    data: dict[str, Any] = read_json_file(path, File, advice=advice, error=DataError, most=MOST_BYTES, finite=True)
    if data["format"] > FORMAT:
        raise DataError(f"{path} has format {data['format']}, this bertc reads up to {FORMAT}: pip install -U bertc")
    return data


def parse(data: Mapping[str, Any], path: Path) -> Ranges:
    """The ranges in what read_json gave; DataError names what is wrong in it."""
    try:
        tensors = {name: _tensor(name, each) for name, each in members(data["tensors"], "tensors", dict).items()}
        settings = Settings(**members(data["settings"], "settings", dict))
        number(settings.outlier, "outlier")
        facts = {key: data[key] for key in HEAD if key not in ("settings", "tensors", *TOTALS)}
        _check_head(facts)
        _check_settings(settings, path)
        return Ranges(facts, settings, tensors, {key: whole(data, key) for key in TOTALS})
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is damaged: {what_is_wrong(error)}; calibrate again") from error


def _check_settings(settings: Settings, path: Path) -> None:
    try:
        check_settings(settings)
    except DataError as error:
        raise DataError(f"{path}, settings: {error}; calibrate again") from error


def _tensor(name: str, data: Any) -> Statistics:
    try:
        return Statistics.from_json(name, members(data, name, dict))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"tensor {name!r}: {what_is_wrong(error)}") from error


def _check_head(facts: Mapping[str, Any]) -> None:
    """Raises ValueError or KeyError naming the key. What the head names is compared and shown: nothing of it is opened."""
    text(facts, "bertc")
    for name in members(facts["tools"], "tools", dict):
        text(facts["tools"], name)
    for key, names in (("source", ("reference", "sha256", "task")), ("graph", ("form", "sha256"))):
        for name in names:
            text(members(facts[key], key, dict), name)
    for each in members(facts["data"], "data", list):
        for name in ("name", "sha256"):
            text(members(each, "data", dict), name)
        for part in members(each["parts"], "parts", list):
            _part(part)


def merge(found: Sequence[Ranges], names: Sequence[str]) -> Ranges:
    """One of several, equal to what one run over all their data gives. `names` are what to call them in an error.

    Raises DataError when they measured different models or graphs, have different settings, or share data.
    """
    if len(found) < 2:
        raise DataError(f"--merge takes two files of ranges or more, got {len(found)}")
    first = found[0]
    for other, name in zip(found[1:], names[1:], strict=True):
        _check_alike(first, other, names[0], name)
    tensors = {name: Statistics(each.place) for name, each in first.tensors.items()}
    for each in found:
        for name, statistics in each.tensors.items():
            tensors[name].merge(statistics)
    facts = dict(first.facts) | {"data": _joined([each.facts["data"] for each in found])}
    facts["tools"] = _tools([each.facts["tools"] for each in found])
    return Ranges(facts, first.settings, tensors, {key: sum(each.totals[key] for each in found) for key in TOTALS})


def _check_alike(first: Ranges, other: Ranges, name: str, other_name: str) -> None:
    for what, key in (("models", "source"), ("graphs", "graph")):
        ours, theirs = first.facts[key], other.facts[key]
        if ours["sha256"] != theirs["sha256"]:
            both = "; ".join(f"{n}: {f.get('form') or f.get('reference')}, sha256 {f['sha256'][:12]}" for n, f in
                             ((name, ours), (other_name, theirs)))  # fmt: skip
            raise DataError(f"{name} and {other_name} are of different {what} and cannot be merged ({both})")
    if first.settings != other.settings:
        raise DataError(f"{name} has {first.settings}, {other_name} {other.settings}; calibrate both alike")
    apart = sorted({k for k in {*first.tensors, *other.tensors} if _place(first, k) != _place(other, k)})
    if apart:
        raise DataError(f"{name} and {other_name} measured different tensors: {', '.join(apart[:3])}; calibrate both alike")


def _place(found: Ranges, name: str) -> Any:
    return found.tensors[name].place if name in found.tensors else None


def _tools(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Versions; where they differ, each of them."""
    names = list(dict.fromkeys(name for each in found for name in each))
    return {name: ", ".join(sorted({each[name] for each in found if name in each})) for name in names}


# Which part of the data: "2/4" is every fourth sample from the second on.


def parse_part(text: str) -> tuple[int, int]:
    """(index from 1, count) of `2/4`; DataError for anything else."""
    try:
        return _part(text)
    except ValueError as error:
        raise DataError(f"shard {text!r} is not INDEX/COUNT, as in 1/4 for the first of four") from error


def _part(text: str) -> tuple[int, int]:
    index, count = (int(number) if number.isdecimal() else 0 for number in text.split("/"))
    if not 1 <= index <= count:
        raise ValueError(f"{text!r} is not INDEX/COUNT")
    return index, count


def _joined(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """All data, each file once with its parts, or 1/1 where they are the whole; DataError where a sample would count twice."""
    names: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for each in (each for data in found for each in data):
        names[each["sha256"]] = min(each["name"], names.get(each["sha256"], each["name"]))
        parts.setdefault(each["sha256"], []).extend(each["parts"])
    for sha256, name in names.items():
        for one, two in _overlaps(parts[sha256]):
            raise DataError(f"parts {one} and {two} of {name} share samples, which would count twice; merge each sample once")
    made = [{"name": name, "sha256": sha256, "parts": _whole(parts[sha256])} for sha256, name in names.items()]
    return sorted(made, key=lambda each: (each["name"], each["sha256"]))


def _overlaps(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for at, one in enumerate(parts):
        for two in parts[:at]:
            (i, n), (j, m) = _part(one), _part(two)
            if (i - j) % math.gcd(n, m) == 0:
                yield two, one


def _whole(parts: Sequence[str]) -> list[str]:
    """Parts without overlaps, in order; they are the whole when their fractions add up to it."""
    sizes = [_part(part)[1] for part in parts]
    whole = math.lcm(*sizes)
    if sum(whole // size for size in sizes) == whole:
        return ["1/1"]
    return sorted(parts, key=lambda part: _part(part)[::-1])
