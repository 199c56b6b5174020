"""The store: finished stages in folders named by their keys, safe for many writers at once, also after one of them is killed.

    objects/<2>/<key>/      what the stage wrote, and record.json: its inputs, the hash of its contents, how long it took
    slots/<name>.json       the last key of a cell of the matrix ("minilm/fp16"), and its last failure: why is it stale?
    locks/<key>.lock        held by the process that makes it; freed by the system when that process dies
    tmp/<name>/             half-made; renamed into place when whole; and the temporary files of a task
    journal.jsonl           one line for each stage that was made
    sums/                   hashes of files by size and time, so that weights are not read again to see that they are the same
    timing/                 TensorRT's timing caches, by GPU model and version

A folder appears by one rename, whole or not at all, and is never written again: its files are read-only, because artifacts are
hard links to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from ..core import ArtifactError, disk_errors, hash_file
from . import content_digest as contents
from .content_digest import RECORD

FRESH = 2.0  # seconds: a file that was written this recently may be written again at the same time stamp


class Store:
    """A folder of finished stages. Every method may be called by many processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, key: str) -> Path:
        return self.path / "objects" / key[:2] / key

    def has(self, key: str) -> bool:
        return (self.folder(key) / RECORD).is_file()

    def record(self, key: str) -> dict[str, Any]:
        """What is known of a finished stage. ArtifactError when it is not there or cannot be read."""
        return _read(self.folder(key) / RECORD)

    def finished(self) -> list[str]:
        """The key of every finished stage."""
        return sorted(path.parent.name for path in self.path.glob(f"objects/*/*/{RECORD}"))

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float = -1) -> Iterator[None]:
        """Hold the right to make a key; waits for the process that holds it. Raises filelock.Timeout."""
        with filelock.FileLock(self._subfolder("locks") / f"{key}.lock", timeout=timeout):
            yield

    def is_being_made(self, key: str) -> bool:
        """Whether a process makes the key right now."""
        try:
            with self.lock(key, timeout=0):
                return False
        except filelock.Timeout:
            return True

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to work in, gone at the end unless it was put in place. It is known to be in use while this process lives."""
        folder = self._subfolder("tmp") / uuid.uuid4().hex
        with disk_errors(self.path), filelock.FileLock(folder.with_suffix(".lock")):
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_suffix(".lock").unlink(missing_ok=True)

    def put(self, key: str, staged: Path, document: Mapping[str, Any]) -> dict[str, Any]:
        """Move a finished folder into the store under its key; returns its record. Where another was first, that one stays."""
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        sums = {p.relative_to(staged).as_posix(): {"sha256": hash_file(p), "bytes": p.stat().st_size} for p in files}
        record = {"key": key, **document, "digest": contents.digest(staged), "files": sums, "made": round(time.time(), 3)}
        for path in files:
            path.chmod(0o444)
        (staged / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        folder = self.folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(folder)
        except OSError:
            if not self.has(key):
                raise
            return self.record(key)
        self._append_journal({"key": key, **{name: record[name] for name in ("slot", "seconds", "made") if name in record}})
        return record

    def _append_journal(self, line: Mapping[str, Any]) -> None:
        """One write of one line at the end of a file: lines of several processes do not mix."""
        handle = os.open(self.path / "journal.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)

    def journal(self) -> list[dict[str, Any]]:
        """What was made, in order."""
        file = self.path / "journal.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []

    def slot(self, name: str) -> dict[str, Any]:
        """The last key of a cell of the matrix ("key") and what failed there since ("failure"); {} for a new one."""
        file = self._slot(name)
        return _read(file) if file.is_file() else {}

    def set_slot(self, name: str, document: Mapping[str, Any]) -> None:
        """Written beside and renamed: a reader sees the old one or the new one."""
        write_whole(self._slot(name), {"slot": name, **document})

    def _slot(self, name: str) -> Path:
        return self.path / "slots" / f"{name.replace('/', '@')}.json"

    def sum_of(self, path: Path) -> str:
        """sha256 of a file anywhere, remembered by its path, size and time."""
        path = path.resolve()
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        file = self.path / "sums" / hashlib.sha256(str(path).encode()).hexdigest()[:32]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            remembered = json.loads(file.read_text("utf-8"))
            if remembered["seen"] == seen:
                return str(remembered["sha256"])
        found = hash_file(path)
        if time.time() - stat.st_mtime > FRESH:
            write_whole(file, {"path": str(path), "seen": seen, "sha256": found})
        return found

    def damage(self, key: str) -> str | None:
        """What is wrong with a finished stage, by the hash of every file; None when it is what was made."""
        try:
            record = self.record(key)
        except ArtifactError as error:
            return str(error)
        for name, entry in record["files"].items():
            file = self.folder(key) / name
            if not file.is_file():
                return f"{name} is missing"
            if hash_file(file) != entry["sha256"]:
                return f"{name} changed since it was written (its sha256 differs)"
        return None

    def remove(self, key: str) -> None:
        """Out of sight by one rename, then gone."""
        aside = self._subfolder("tmp") / f"{key}-{uuid.uuid4().hex}"
        self.folder(key).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """Clear what killed processes left half-made: folders whose lock nobody holds."""
        for folder in self.path.glob("tmp/*/"):
            guard = folder.with_suffix(".lock")
            try:
                with filelock.FileLock(guard, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
                    guard.unlink(missing_ok=True)
            except filelock.Timeout:
                continue

    def timing_cache(self, gpu: str, version: str) -> Path:
        """The file of TensorRT's timing cache for a GPU model and a version."""
        return self._subfolder("timing") / f"{gpu}-{version}.cache"

    def _subfolder(self, name: str) -> Path:
        with disk_errors(self.path):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); run bertc cache verify --repair") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{file} is damaged; run bertc cache verify --repair")
    return found


def write_whole(file: Path, document: Mapping[str, Any]) -> None:
    """Write JSON beside the file and rename it: nobody ever reads a half of it."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        beside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(file)
