"""The store: finished stages in folders named by their keys, safe for many writers at once, also after one of them is killed.

    objects/<2>/<key>/      what the stage wrote, and record.json: its inputs, the hash of its contents, how long it took
    slots/<name>.json       the last key of a cell of the matrix ("minilm/fp16"), and its last failure: why is it stale?
    locks/<key>.lock        held by the process that makes it; freed by the system when that process dies
    tmp/<name>/             half-made; renamed into place when whole; and the temporary files of a task
    journal.jsonl           one line for each stage that was made
    sums/                   hashes of files by size and time, so that weights are not read again to see that they are the same
    timing/                 TensorRT's timing caches, by GPU model and version

A folder appears by one rename, whole or not at all, on the disk before it has its name, and is never written again. Artifacts are
copies of its files: what becomes of a copy changes nothing here. A stage is used only while it is what was made: by the sizes and
times of its files, and by their bytes where one of these moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from ..core import ArtifactError, disk_errors, hash_file, output_errors, read_json_lines, sync_folder, sync_tree, write_durably
from . import content_digest as contents
from . import travelled
from .content_digest import RECORD

TEMPORARY = re.compile(r"([0-9a-f]{64}-)?[0-9a-f]{32}")  # what this file names below tmp/, and nobody else
LOCK = re.compile(r"[\w-]+")
FRESH = 2.0  # seconds: a file that was written this recently may be written again at the same time stamp


class Store:
    """A folder of finished stages. Every method may be called by many processes at once."""

    def __init__(self, path: Path, verify_bytes: bool = False) -> None:
        """`verify_bytes`: read every file that is asked about, whatever its size and time say."""
        self.path, self.verify_bytes = path, verify_bytes
        self._read: dict[Path, tuple[list[int], str]] = {}  # by this process: once is enough

    def folder(self, key: str) -> Path:
        """The folder of a key. ArtifactError for what is no key, which a damaged file may say, and for a link."""
        if not travelled.is_hash(key):
            raise ArtifactError(f"{travelled.shown(str(key))!r} is no key of a finished stage: a key is a sha256")
        return travelled.below(self.path, "objects", key[:2], key)

    def has(self, key: str) -> bool:
        return (self.folder(key) / RECORD).is_file()

    def record(self, key: str) -> dict[str, Any]:
        """What is known of a finished stage. ArtifactError when it is not there, cannot be read, or is no record of this key."""
        file, advice = self.folder(key) / RECORD, f"run bertc cache verify --repair {self.path}"
        found = travelled.read_object(file, advice)
        try:
            travelled.check_record(found, key)
        except ValueError as error:
            raise ArtifactError(f"{file} is damaged: {error}; {advice}") from error
        return found

    def known_record(self, key: str | None) -> dict[str, Any] | None:
        """The record of a stage that only tells what was; None where there is none to read."""
        if key is None or not self.has(key):
            return None
        with contextlib.suppress(ArtifactError):
            return self.record(key)
        return None

    def whole_record(self, key: str) -> dict[str, Any]:
        """The record of a stage whose files are about to be used, every one of them hashed. ArtifactError where one differs."""
        if why := self.damage(key, anew=True):
            raise self.damaged(key, why)
        return self.record(key)

    def damaged(self, key: str, why: str) -> ArtifactError:
        """The error of a stage that is not what was made, after its bytes were read: the next build knows of it."""
        advice = f"bertc fleet build makes it again; bertc cache verify --repair {self.path} checks and clears the whole store"
        return ArtifactError(f"{self.folder(key)}: {why}; {advice}")

    def finished(self) -> list[str]:
        """The key of every finished stage."""
        found = (path.parent for path in travelled.below(self.path, "objects").glob(f"*/*/{RECORD}"))
        return sorted(p.name for p in found if travelled.is_hash(p.name) and self._is_own(p))

    def _is_own(self, path: Path) -> bool:
        """Whether a folder of a stage is in its place, and no link on the way."""
        return path.parent.name == path.name[:2] and not path.is_symlink() and not path.parent.is_symlink()

    def strays(self) -> list[str]:
        """What lies among the finished stages and is none, below `objects`: links, and folders that are not named by a key."""
        found = []
        for first in sorted(travelled.below(self.path, "objects").glob("*")):
            inside = [] if first.is_symlink() else sorted(first.glob("*"))
            found += [] if first.is_dir() and not first.is_symlink() else [first.name]
            found += [f"{first.name}/{p.name}" for p in inside if not (travelled.is_hash(p.name) and self._is_own(p))]
        return found

    def remove_stray(self, name: str) -> None:
        """Remove what `strays` named: of a link the link, never what it leads to."""
        aside = self._subfolder("tmp") / uuid.uuid4().hex
        (self.path / "objects" / name).rename(aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float = -1) -> Iterator[None]:
        """Hold the right to make a key; waits for the process that holds it. Raises filelock.Timeout."""
        if not LOCK.fullmatch(key):
            raise ArtifactError(f"{travelled.shown(str(key))!r} is no key of a finished stage: a key is a sha256")
        with filelock.FileLock(travelled.below(self._subfolder("locks"), f"{key}.lock"), timeout=timeout):
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
            folder.mkdir(mode=0o700)  # the job of a task lies in here: nobody else may write what a process is about to do
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_suffix(".lock").unlink(missing_ok=True)

    def put(self, key: str, staged: Path, document: Mapping[str, Any]) -> dict[str, Any]:
        """Move a finished folder into the store under its key; returns its record. Where another was first, that one stays."""
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        sums = {p.relative_to(staged).as_posix(): {"sha256": hash_file(p), "bytes": p.stat().st_size} for p in files}
        hashes = {name: str(entry["sha256"]) for name, entry in sums.items()}
        record = {"key": key, **document, "digest": contents.digest(staged, hashes), "files": sums, "made": round(time.time(), 3)}
        for path in files:
            path.chmod(0o444)
        (staged / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        folder = self.folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
        sync_tree(staged)
        try:
            staged.rename(folder)
        except OSError:
            if not self.has(key):
                raise
            return self.record(key)
        for each in (folder.parent, folder.parent.parent, self.path):
            sync_folder(each)
        self._append_journal({"key": key, **{name: record[name] for name in ("slot", "seconds", "made") if name in record}})
        return record

    def _append_journal(self, line: Mapping[str, Any]) -> None:
        """One write of one line at the end of a file: lines of several processes do not mix."""
        file = travelled.below(self.path, "journal.jsonl")
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)

    def journal(self) -> list[dict[str, Any]]:
        """What was made, in order."""
        file = self.path / "journal.jsonl"
        advice = "remove the line: it only says what was made"
        return read_json_lines(file, dict[str, Any], advice=advice, error=ArtifactError) if file.is_file() else []

    def slot(self, name: str) -> dict[str, Any]:
        """The last key of a cell of the matrix ("key") and what failed there since ("failure"); {} for a new one."""
        file = self._slot(name)
        if not file.is_file():
            return {}
        advice = "delete it: it only says what was made last"
        found = travelled.read_object(file, advice)
        failure = found.get("failure", {})
        known = isinstance(failure, dict) and all(isinstance(failure.get(each, ""), str) for each in ("key", "error"))
        if not known or ("key" in found and not travelled.is_hash(found["key"])):
            raise ArtifactError(f"{file} is damaged: it names no key of a stage; {advice}")
        return found

    def set_slot(self, name: str, document: Mapping[str, Any]) -> None:
        """Written beside and renamed: a reader sees the old one or the new one."""
        write_whole(self._slot(name), {"slot": name, **document})

    def _slot(self, name: str) -> Path:
        return travelled.below(self.path, "slots", f"{name.replace('/', '@')}.json")

    def sum_of(self, path: Path, anew: bool = False) -> str:
        """sha256 of a file anywhere, remembered by its path, size, times and inode; `anew`: its bytes are read all the same.

        What is read is remembered too: damage that a size and a time do not show is known from then on.
        """
        path = path.resolve()
        facts = path.stat()
        seen = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        known = self._read.get(path)
        if known is not None and known[0] == seen and not anew:
            return known[1]
        file = travelled.below(self.path, "sums", hashlib.sha256(str(path).encode()).hexdigest()[:32])
        if not (anew or self.verify_bytes) and (remembered := _remembered(file, seen)):
            return remembered
        found = hash_file(path)
        if time.time() - facts.st_mtime > FRESH:
            self._read[path] = (seen, found)
            write_whole(file, {"path": str(path), "seen": seen, "sha256": found}, durable=False)
        return found

    def damage(self, key: str, anew: bool = False) -> str | None:
        """What is wrong with a finished stage; None when it is what was made, by the hash of every file (see `sum_of`).

        A file that the record does not name, a link, and a digest that is not that of the files are damage, too: a lock is
        compared with the digest.
        """
        try:
            record = self.record(key)
            folder, known = self.folder(key), record["files"]
            if why := what_differs(folder, known, lambda file: self.sum_of(file, anew)):
                return why
            if contents.digest(folder, {name: entry["sha256"] for name, entry in known.items()}) != record["digest"]:
                return "the record's digest is not that of its files"
        except ArtifactError as error:
            return str(error)
        return None

    def remove(self, key: str) -> None:
        """Out of sight by one rename, then gone."""
        aside = self._subfolder("tmp") / f"{key}-{uuid.uuid4().hex}"
        self.folder(key).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """Clear what killed processes left half-made: folders whose lock nobody holds. Only what a store names so itself."""
        for folder in travelled.below(self.path, "tmp").glob("*/"):
            if folder.is_symlink() or not TEMPORARY.fullmatch(folder.name):
                continue
            guard = travelled.below(folder.parent, f"{folder.name}.lock")
            try:
                with filelock.FileLock(guard, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
                    guard.unlink(missing_ok=True)
            except filelock.Timeout:
                continue

    def timing_cache(self, gpu: str, version: str) -> Path:
        """The file of TensorRT's timing cache for a GPU model and a version."""
        return travelled.below(self._subfolder("timing"), f"{gpu}-{version}.cache")

    def _subfolder(self, name: str) -> Path:
        folder = travelled.below(self.path, name)
        with output_errors(self.path, "--store"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def what_differs(folder: Path, files: Mapping[str, Mapping[str, Any]], hashed: Callable[[Path], str]) -> str | None:
    """The first file of a folder that is not as `files` says: a link, unknown, missing, changed. None where all are."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return f"{travelled.shown(name)} is a link"
        if not path.is_dir() and name not in (*files, RECORD):
            return f"{travelled.shown(name)} is not among the files that were made"
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            return f"{travelled.shown(name)} is missing"
        if file.stat().st_size != entry["bytes"] or hashed(file) != entry["sha256"]:
            return f"{travelled.shown(name)} changed since it was written (its sha256 differs)"
    return None


def _remembered(file: Path, seen: list[int]) -> str | None:
    with contextlib.suppress(ArtifactError, KeyError):
        found = travelled.read_object(file, "it is written again")
        if found["seen"] == seen and travelled.is_hash(found["sha256"]):
            return str(found["sha256"])
    return None


def write_whole(file: Path, document: Mapping[str, Any], durable: bool = True) -> None:
    """Write JSON beside the file and rename it: nobody ever reads a half of it, also after a crash where it is `durable`."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        if durable:
            write_durably(file, text, beside)
            return
        with beside.open("x", encoding="utf-8") as handle:
            handle.write(text)
        beside.replace(file)
