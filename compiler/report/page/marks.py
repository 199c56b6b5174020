"""Numbers on a page: each is taken from the report by its path, and carries that path, so that a page can be checked.

A number is written `<data value="0.0023829" data-json="/verification/graph/outputs/logits/relative">2.4e-03</data>`: the path is
a JSON Pointer (RFC 6901), `value` is the number as report.json has it, and the text is what `text` makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

Path = tuple[str | int, ...]
# How a number is shown, by the last name on its path. What is not here: whole numbers with separators, others to six digits.
SECONDS, BYTES, ERROR, COSINE, DECIBELS, SHARE = "seconds", "bytes", "error", "cosine", "decibels", "share"
KINDS = {
    **dict.fromkeys(("seconds", "wall_s"), SECONDS),
    **dict.fromkeys(
        ("bytes", "total_bytes", "initializer_bytes", "engine_bytes", "constant_bytes", "stored_bytes", "plan_bytes"), BYTES
    ),
    **dict.fromkeys(("max_abs", "relative", "rel", "error"), ERROR),
    **dict.fromkeys(("cosine", "cosine_min", "cosine_mean", "cosine_of_rows"), COSINE),
    "sqnr_db": DECIBELS,
    **dict.fromkeys(("agreement", "share", "drop", "low", "high", "source", "artifact", "alarm", "max_drop"), SHARE),
}
# Mappings whose names a user chose: their numbers are of one kind, whatever the name.
NAMED: Mapping[Path, str] = {
    ("stages",): SECONDS,
    ("size", "files"): BYTES,
    ("size",): BYTES,
    ("summary", "near_misses"): "",
    ("summary", "islands"): "",
    ("summary", "kernels"): "",
    ("passes", "counts"): "",
    ("budget",): "",
    ("verification", "budget"): "",
}


def shown_text(path: Path, value: Any) -> str:
    """How the page shows the value at a path of report.json. Times in s or ms, sizes in binary units, cosines to 7 digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    shown = {
        SECONDS: _seconds,
        BYTES: _bytes,
        ERROR: _error,
        COSINE: "{:.7f}".format,
        DECIBELS: "{:.1f} dB".format,
        SHARE: _share,
    }
    kind = _kind(path)
    if kind:
        return shown[kind](value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _kind(path: Path) -> str:
    if path[:1] == ("reports",):  # of a fleet: the report of one artifact
        return _kind(path[2:])
    if path[:-1] in NAMED:
        return NAMED[path[:-1]]
    named = [part for part in path if isinstance(part, str)]
    return KINDS.get(named[-1], "") if named else ""


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:,.1f} s"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,} B"


def _error(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _share(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def json_pointer(path: Path) -> str:
    """The path as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def json_leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a JSON document that is no list or object, with its path."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else None
    if inner is None:
        yield path, value
        return
    for key, each in inner:
        yield from json_leaves(each, (*path, key))


class ReportView:
    """A report as a page reads it, or the part of it below `base`. `root` goes before every pointer."""

    def __init__(self, data: Mapping[str, Any], root: Path = (), base: Path = ()) -> None:
        self.data, self.root, self.base = data, root, base

    def below(self, *path: str | int) -> ReportView:
        """The part below a path: its paths begin there."""
        return ReportView(self.data, self.root, (*self.base, *path))

    def get(self, *path: str | int) -> Any:
        """What lies at a path, None where there is nothing: a section whose data is missing says so."""
        found: Any = self.data
        for part in (*self.base, *path):
            inside = (
                part in found if isinstance(found, Mapping) else isinstance(found, list | tuple) and part in range(len(found))
            )
            if not inside:
                return None
            found = found[part]
        return found

    def mark(self, *path: str | int) -> Markup:
        """The value at a path, shown by `text`: a number with its mark, a word as it is."""
        value, whole = self.get(*path), (*self.base, *path)
        said = shown_text(whole, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Markup("<span>{}</span>").format(said)
        where = json_pointer((*self.root, *whole))
        return Markup('<data value="{}" data-json="{}">{}</data>').format(json.dumps(value), where, said)

    def tree(self, *path: str | int) -> Markup:
        """Everything below a path, as nested lists: for what has no section of its own."""
        value = self.get(*path)
        if isinstance(value, Mapping) and value:
            rows = ((escape(str(key).replace("_", " ")), self.tree(*path, key)) for key in value)
            return Markup("<dl>{}</dl>").format(
                Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*r) for r in rows)
            )
        if isinstance(value, list | tuple) and value:
            rows_ = (Markup("<li>{}</li>").format(self.tree(*path, at)) for at in range(len(value)))
            return Markup('<ul class="list">{}</ul>').format(Markup("").join(rows_))
        if isinstance(value, Mapping | list | tuple):
            return Markup("<span>none</span>")
        return self.mark(*path)
