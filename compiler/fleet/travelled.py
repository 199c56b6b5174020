"""Files that travel: a store, a lock, an `out` folder may come from someone else. What they say is checked here before it is
used: it is data, never a path out of its folder, and never code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..core import ArtifactError, read_json, what_is_wrong

HASH = re.compile(r"[0-9a-f]{64}")
SLOT = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.,-]*")
MOST_BYTES = 64 * 2**20  # of a JSON file: a lock of a thousand entries has 2 MiB
MOST = 1e15  # seconds or bytes; what is more, or no number, is no measurement


def is_hash(value: Any) -> bool:
    """Whether a value is a sha256 in hexadecimal: only that may become the name of a folder."""
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def is_file_name(name: Any) -> bool:
    """Whether a name stays below the folder it is joined to, on every system: relative, no `..`, no drive."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    return not PureWindowsPath(name).anchor and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def shown(text: str) -> str:
    """Text of a file for a terminal or a log: what is not printable (escapes, right-to-left overrides) is spelled out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode() for each in text)


def below(root: Path, *parts: str) -> Path:
    """A path below a folder. ArtifactError where a link stands on the way, which could lead anywhere. (`root` may be a link.)"""
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ArtifactError(
                f"{shown(str(path))} is a link, and could lead out of {root}; remove it (a link for all of {root} is fine)"
            )
    return path


def read_object(file: Path, advice: str) -> dict[str, Any]:
    """A JSON object. ArtifactError, ending in `advice`, for what cannot be read, is no object, or is far too large."""
    try:
        if file.is_symlink():
            raise ValueError("it is a link")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({what_is_wrong(error)}); {advice}") from error
    return dict(read_json(file, dict[str, Any], advice=advice, error=ArtifactError, most=MOST_BYTES))


def require(holds: bool, what: str) -> None:
    """ValueError saying what a file lacks."""
    if not holds:
        raise ValueError(what)


def check_inputs(inputs: Any) -> None:
    """Inputs of a stage as a record and a lock keep them, to be compared in words. ValueError for another shape."""
    require(isinstance(inputs, Mapping) and isinstance(inputs.get("stage"), str), "its inputs are no inputs of a stage")
    for part in ("source", "code", "tools", "options", "after"):
        require(isinstance(inputs.get(part, {}), Mapping), f"{part} of its inputs is no table")


def check_record(found: Mapping[str, Any], key: str) -> None:
    """What a store says of a finished stage. ValueError for what cannot have been written for this key."""
    require(found.get("key") == key, "it is the record of another key")
    require(is_hash(found.get("digest")), "its digest is no sha256")
    require(isinstance(slot := found.get("slot"), str) and SLOT.fullmatch(slot) is not None, "its slot is no name of a stage")
    check_inputs(found.get("inputs"))
    for name in ("seconds", "made", "peak_bytes"):
        value = found.get(name, 0)
        require(isinstance(value, int | float) and -1 <= value < MOST, f"{name} is no number")
    files = found.get("files")
    if not isinstance(files, Mapping):
        raise ValueError("it lists no files")
    for name, entry in files.items():
        require(is_file_name(name), f"it names {shown(str(name))!r}, which is outside the stage's folder")
        require(isinstance(entry, Mapping) and is_hash(entry.get("sha256")), f"{shown(name)} has no sha256")
        require(isinstance(size := entry.get("bytes"), int) and 0 <= size < MOST, f"{shown(name)} has no size")


def check_lock(found: Mapping[str, Any]) -> None:
    """The tables of a lock. ValueError, KeyError or TypeError for another shape."""
    for slot, stage in found["stages"].items():
        require(SLOT.fullmatch(slot) is not None, f"{shown(slot)!r} is no name of a stage")
        require(is_hash(stage["key"]) and is_hash(stage["digest"]), f"{slot}: its key or digest is no sha256")
        check_inputs(stage["inputs"])
    for name, entry in found["entries"].items():
        require(SLOT.fullmatch(name) is not None, f"{shown(name)!r} is no name of an entry")
        require(is_hash(entry["key"]) and is_hash(entry["digest"]), f"{name}: its key or digest is no sha256")
        require(all(is_file_name(n) and is_hash(h) for n, h in entry["files"].items()), f"{name}: its files have no sha256")
    require(all(is_hash(value) for value in found["code"].values()), "the code has no sha256")
