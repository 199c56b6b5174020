"""From the store to where artifacts are wanted: copies of their own, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST
from ..artifact import manifest as artifact
from ..core import InputError, copy_file, hash_file, read_json
from ..report import document as reports
from .store import Store, what_differs
from .travelled import shown


def place(store: Store, key: str, out: Path) -> str | None:
    """Make `out` the artifact of a key; returns why that was necessary, None where it is that already.

    Raises ArtifactError where something else is there, and for a stage that is not what was made: the copies are hashed.
    """
    why = difference(store, key, out)
    if why is None:
        return None
    mine = hashlib.sha256(str(out.resolve()).encode()).hexdigest()
    with store.lock(f"out-{mine[:16]}"), artifact.staging(out, force=True) as stage:
        if damage := store.damage(key):
            raise store.damaged(key, damage)
        _copy(store, key, store.record(key)["files"], stage)
    return why


def _copy(store: Store, key: str, files: Mapping[str, Mapping[str, Any]], stage: Path) -> None:
    """What a build wrote under two names (model.onnx is graph.onnx) stays one file with two names, of the copy."""
    source, copied = store.folder(key), dict[tuple[int, int], Path]()
    for name in sorted(files):
        file, wanted = source / name, stage / name
        wanted.parent.mkdir(parents=True, exist_ok=True)
        inode = (file.stat().st_dev, file.stat().st_ino)
        if inode in copied:
            os.link(copied[inode], wanted)
            continue
        copy_file(file, wanted)
        if hash_file(wanted) != files[name]["sha256"]:
            why = store.damage(key, anew=True) or f"{shown(name)} changed while it was copied"
            raise store.damaged(key, why)
        copied[inode] = wanted


def difference(store: Store, key: str, out: Path) -> str | None:
    """What of `out` is not as the finished stage; None where all of it is. (By sizes and times first: `Store.sum_of`.)"""
    if not (out / MANIFEST).is_file():
        return f"there is no {MANIFEST}" if out.exists() else "it was not there"
    files, source = store.record(key)["files"], store.folder(key)
    for name in files:
        if (source / name).exists() and (out / name).exists() and os.path.samefile(source / name, out / name):
            return f"{shown(name)} is a hard link to the store"  # as they were placed once
    return what_differs(out, files, store.sum_of)


def holds_stage(store: Store, key: str, out: Path) -> bool:
    """Whether `out` is the artifact of a finished stage."""
    return difference(store, key, out) is None


def artifact_facts(path: Path) -> dict[str, Any]:
    """What a table wants to know of an artifact: bytes, kernels, how close it is, its precision. {} where it cannot be read."""
    try:
        manifest, report = (read_json(path / name, dict[str, Any]) for name in (MANIFEST, artifact.REPORT))
        return _facts(path, manifest, report)
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
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
