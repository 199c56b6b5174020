"""A power cut: what was not synced is lost, in part and in any order. The old artifact is there, or the new one, never a mix.

At every step of an install (before and after each fsync, rename, exchange and removal) the folders and files are noted. A crash
at a step then keeps of each folder one of the lists of names, and of each file one of the contents, that it had between its last
fsync and that step; a file that was never synced may be empty or half there. That is more than ext4 or xfs would lose.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertc.artifact import staged
from bertc.core import durable

POINTS = int(os.environ.get("BERTC_CRASH_POINTS", "200"))


class Disk:
    """What a folder's disk may hold after a crash."""

    def __init__(self, root: Path) -> None:
        self.root, self.step = root, 0
        self.history: dict[int, list[tuple[int, Any]]] = {}  # inode: (step, names {name: inode} of a folder, bytes of a file)
        self.synced: dict[int, list[int]] = {}  # inode: the steps of its fsyncs
        self.top = root.stat().st_ino
        self.note()
        self.synced |= {inode: [self.step] for inode in self.history}  # what was there before is on the disk

    def note(self) -> None:
        self.step += 1
        for path in (self.root, *self.root.rglob("*")):
            seen = self.history.setdefault(path.stat().st_ino, [])
            now: Any = {p.name: p.stat().st_ino for p in path.iterdir()} if path.is_dir() else path.read_bytes()
            if not seen or seen[-1][1] != now:
                seen.append((self.step, now))

    def fsync(self, handle: int) -> None:
        self.note()
        self.synced.setdefault(os.fstat(handle).st_ino, []).append(self.step)

    def crash(self, step: int, rng: random.Random, to: Path) -> None:
        """Write what is left of a crash at a step."""
        self._write(self.top, step, rng, to)

    def _write(self, inode: int, step: int, rng: random.Random, to: Path) -> None:
        kept = self._kept(inode, step, rng)
        if isinstance(kept, bytes):
            to.write_bytes(kept)
            return
        to.mkdir()
        for name, child in kept.items():
            self._write(child, step, rng, to / name)

    def _kept(self, inode: int, step: int, rng: random.Random) -> Any:
        seen = [(at, what) for at, what in self.history[inode] if at <= step] or self.history[inode][:1]
        synced = max((at for at in self.synced.get(inode, []) if at <= step), default=0)
        before = [what for at, what in seen if at <= synced][-1:] if synced else []
        later = [what for at, what in seen if at > synced]
        if not before and isinstance(seen[-1][1], dict):
            before = [{}]
        if not before:
            whole = seen[-1][1]
            before = [b"", whole[: len(whole) // 2], bytes(len(whole))]
        return rng.choice(before + later)


def write(folder: Path, mark: str) -> None:
    """Files whose hashes are in the manifest, as of an artifact."""
    files = {f"f{n}": (mark + str(n)).encode() * 200 for n in range(3)} | {"tokenizer/t": mark.encode() * 50}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "bertc": "0", "mark": mark, "files": hashes}))


def whole(folder: Path) -> str:
    """The mark of what lies there, of which every file must be its own. '' for nothing."""
    if not folder.exists():
        return ""
    found = json.loads((folder / "manifest.json").read_text())
    wrong = [n for n, h in found["files"].items() if hashlib.sha256((folder / n).read_bytes()).hexdigest() != h]
    assert not wrong, f"{found['mark']}: {wrong} of another, or half there"
    return str(found["mark"])


def noting(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        disk.note()
        try:
            return real(*arguments, **options)
        finally:
            disk.note()

    return call


def installed(folder: Path, old: bool, swap: bool, patch: pytest.MonkeyPatch) -> Disk:
    """An install that was watched step by step."""
    folder.mkdir(parents=True)
    if old:
        write(folder / "out", "old")
    disk = Disk(folder)
    sync = os.fsync
    patch.setattr(durable.os, "fsync", lambda handle: (sync(handle), disk.fsync(handle)))
    patch.setattr(staged, "exchange", noting(disk, staged.exchange if swap else lambda one, other: False))
    patch.setattr(Path, "rename", noting(disk, Path.rename))
    for name in ("unlink", "rmdir"):
        patch.setattr(os, name, noting(disk, getattr(os, name)))
    with staged.staging(folder / "out", True) as stage:
        write(stage, "new")
    disk.note()
    patch.undo()
    return disk


def outcomes(disk: Disk, old: bool, folder: Path, points: int) -> dict[str, int]:
    """How often which artifact was there after a crash and the recovery of the next build; AssertionError for a mix."""
    counts: dict[str, int] = {}
    for number in range(points):
        rng = random.Random(number)
        left = folder / f"crash-{number}"
        disk.crash(rng.randint(1, disk.step), rng, left)
        if (left / "out").exists():
            whole(left / "out")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staged, "_in_use", lambda folder, pid: False)  # no process outlives a power cut
            staged._recover(left / "out")
        found = whole(left / "out")
        assert found in (("old", "new") if old else ("", "new")), f"point {number}: {found!r}"
        assert [p.name for p in left.iterdir() if p.name != "out"] == [], "the next build clears what is left"
        counts[found or "nothing"] = counts.get(found or "nothing", 0) + 1
        shutil.rmtree(left)
    return counts


@pytest.mark.parametrize(("old", "swap"), [(True, True), (True, False), (False, True)], ids=["exchange", "renames", "first"])
def test_a_power_cut_leaves_the_old_artifact_or_the_new_one(
    old: bool, swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    disk = installed(tmp_path / "work", old, swap, monkeypatch)
    assert whole(tmp_path / "work" / "out") == "new"
    counts = outcomes(disk, old, tmp_path, POINTS)
    sys.stdout.write(f"hardening: power cuts: {POINTS} points, {counts}\n")  # shown with -s
    record_property("power cuts", POINTS)
    assert len(counts) == 2 and sum(counts.values()) == POINTS, counts


def test_without_fsync_the_same_crashes_leave_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the check above can fail: it is fsync that it checks."""
    monkeypatch.setattr(staged, "sync_tree", lambda folder: None)
    disk = installed(tmp_path / "work", True, True, monkeypatch)
    with pytest.raises((AssertionError, ValueError, OSError)):
        outcomes(disk, True, tmp_path, POINTS)
