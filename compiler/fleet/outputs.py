"""From the store to where artifacts are wanted: hard links, or copies where the file system has none; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST
from ..artifact import manifest as artifact
from ..report import document as reports
from .content_digest import RECORD
from .store import Store
from .travelled import shown


def place(store: Store, key: str, out: Path) -> bool:
    """Make `out` the artifact of a key; False where it is that already. Raises ArtifactError where something else is there."""
    source = store.folder(key)
    if holds_stage(source, out):
        return False
    mine = hashlib.sha256(str(out.resolve()).encode()).hexdigest()
    with store.lock(f"out-{mine[:16]}"), artifact.staging(out, force=True) as stage:
        for name in sorted(store.whole_record(key)["files"]):
            file, wanted = source / name, stage / name
            wanted.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, wanted)
            except OSError:  # another disk, or a file system without links
                shutil.copy2(file, wanted)
    return True


def holds_stage(source: Path, out: Path) -> bool:
    """Whether `out` holds the files of a finished stage: links to them, or copies of their size and time."""
    if not (out / MANIFEST).is_file():
        return False
    wanted = {p.relative_to(source): p.stat() for p in source.rglob("*") if p.is_file() and p.name != RECORD}
    found = {p.relative_to(out): p.stat() for p in out.rglob("*") if p.is_file()}
    if wanted.keys() != found.keys():
        return False
    return all(
        os.path.samestat(stat, found[name]) or (stat.st_size, stat.st_mtime_ns) == (found[name].st_size, found[name].st_mtime_ns)
        for name, stat in wanted.items()
    )


def artifact_facts(path: Path) -> dict[str, Any]:
    """What a table wants to know of an artifact: bytes, kernels, how close it is, its precision. {} where it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        report = json.loads((path / artifact.REPORT).read_text("utf-8"))
        return _facts(path, manifest, report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _facts(path: Path, manifest: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    size = sum({stat.st_ino: stat.st_size for stat in (p.stat() for p in path.rglob("*") if p.is_file())}.values())
    return {
        "bytes": size,
        "kernels": count if isinstance(count := manifest["engine"].get("kernels", {}).get("count"), int) else None,
        "accuracy": _accuracy(report["verification"]),
        "stages": report["stages"],
        "precision": _printable(manifest["precision"]["mode"]),
        "precision_why": _printable(reports.precision_reason(report)),
    }


def _printable(text: Any) -> str | None:
    """For a terminal: an artifact in `out` may be another's."""
    return shown(str(text)) if text is not None else None


def _accuracy(verdict: dict[str, Any] | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    outputs = (verdict["engine"] or verdict["graph"])["outputs"].values()
    return {
        "verdict": _printable(verdict["verdict"]),
        "engine_executed": verdict["engine_executed"],
        "engine_reason": _printable(verdict["engine_reason"]),
        "cosine_min": min(float(out["cosine_min"]) for out in outputs),
        "relative": max(float(out["relative"]) for out in outputs),
    }
