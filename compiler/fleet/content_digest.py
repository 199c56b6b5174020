"""The hash of what a finished stage holds: two results with one digest are the same to whatever comes next.

Left out is what depends on the time or the place of the work: how long the stages took, the path that the source was read from,
and versions of tools that took no part. (Those that did take part are in the key.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..artifact import MANIFEST, PAGE, REPORT
from ..core import ArtifactError, hash_file, read_json

RECORD = "record.json"
NOTES = "notes.json"  # of a fused graph: what was said, and how long it took
DIGESTED_FIELDS = ("target", "precision", "inputs", "outputs", "dims", "profiles", "budget")


class Origin(TypedDict):
    options: NotRequired[dict[str, Any]]


class Manifest(TypedDict):
    source: Origin


def digest(directory: Path, known: Mapping[str, str] | None = None) -> str:
    """sha256 over the names and hashes of the files, and over what of a manifest the next stage reads.

    `known` are hashes that were just taken. Raises ArtifactError for a manifest that is none.
    """
    sums = known or {}
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    left_out = (MANIFEST, REPORT, PAGE, RECORD, NOTES)
    names = {path.relative_to(directory).as_posix(): path for path in files if path.name not in left_out}
    found: dict[str, Any] = {name: sums.get(name) or hash_file(path) for name, path in names.items()}
    if (directory / MANIFEST).is_file():
        advice = "copy or build the artifact again"
        manifest = read_json(directory / MANIFEST, Manifest, advice=advice, error=ArtifactError)
        found["manifest"] = {name: manifest.get(name) for name in DIGESTED_FIELDS}
        found["source"] = {name: manifest["source"].get(name) for name in ("sha256", "task")}
        found["source"]["options"] = {k: v for k, v in manifest["source"].get("options", {}).items() if k != "adapter"}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
