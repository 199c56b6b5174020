"""The store: many writers at once, killed ones, damage, and what may go."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.fleet_processes import writers
from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError
from bertc.fleet import store_cleaning as cleaning
from bertc.fleet.store import Store

WRITERS, ENTRIES = 8, 60
K1, K2, K3, K4 = (digit * 64 for digit in "1234")


def put(store: Store, key: str, text: str = "x", **facts: object) -> None:
    with store.staging() as folder:
        (folder / "file").write_text(text)
        store.put(key, folder, {"slot": "m/s", "inputs": {"stage": "build"}, "seconds": 1.0, **facts})


def test_many_writers_lose_and_damage_nothing(tmp_path: Path) -> None:
    for process in writers(tmp_path, WRITERS, ENTRIES):
        process.communicate(timeout=120)
        assert process.returncode == 0
    store = Store(tmp_path)
    found = store.finished()
    assert len(found) == ENTRIES
    assert list(cleaning.damaged_stages(store)) == []
    assert sorted(line["key"] for line in store.journal()) == found, "each was made once"
    assert all((store.folder(key) / "a" / "file").read_text() == key * 50 for key in found)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_killed_writer_leaves_nothing_but_a_folder_to_sweep(tmp_path: Path) -> None:
    (process,) = writers(tmp_path, 1, 3000)
    assert process.stdout is not None
    process.stdout.readline()
    while len(Store(tmp_path).finished()) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = Store(tmp_path)
    assert 0 < len(store.finished()) < 3000, "it was killed on the way"
    assert list(cleaning.damaged_stages(store)) == []
    with store.staging() as mine:
        store.sweep()
        assert mine.is_dir(), "a folder in use stays"
    store.sweep()
    assert [name for name in os.listdir(tmp_path / "tmp") if not name.endswith(".lock")] == []
    for key in store.finished():
        assert not store.is_being_made(key), "the lock of a dead process is free"


def test_who_comes_second_finds_the_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, K1, "first")
    put(store, K1, "second")
    assert (store.folder(K1) / "file").read_text() == "first"
    assert len(store.journal()) == 1
    with store.lock(K1):
        assert store.is_being_made(K1)


def test_finished_files_are_read_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, K1)
    assert (store.folder(K1) / "file").stat().st_mode & 0o222 == 0


def test_damage_is_found_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    for key in (K1, K2, K3, K4):
        put(store, key)
    assert cli.run(["cache", "verify", str(tmp_path)]) == 0
    for key in (K1, K2, K3):
        (store.folder(key) / "file").chmod(0o644)
    (store.folder(K1) / "file").write_text("y")
    (store.folder(K2) / "file").unlink()
    (store.folder(K3) / "record.json").write_text("{")
    capsys.readouterr()
    assert cli.run(["cache", "verify", str(tmp_path), "--json"]) == 1
    told = {each["key"]: each["why"] for each in json.loads(capsys.readouterr().out)["damaged"]}
    assert "sha256 differs" in told[K1]
    assert "is missing" in told[K2]
    assert "is damaged" in told[K3]
    with pytest.raises(ArtifactError, match="bertc cache verify --repair"):
        store.record(K3)
    assert cli.run(["cache", "verify", str(tmp_path), "--repair"]) == 0
    assert store.finished() == [K4]


def test_what_may_go_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    for key in (K1, K2, K3):
        put(store, key, "x" * 1000)
    lock = tmp_path / "fleet.lock.json"
    lock.write_text(json.dumps({"stages": {"m/s": {"key": K2}}}))
    assert cleaning.stages_to_remove(store, {K2}, None, None) == {K1: "no lock names it", K3: "no lock names it"}
    assert cleaning.stages_to_remove(store, None, 1, None) == {}
    assert set(cleaning.stages_to_remove(store, None, -1, None)) == {K1, K2, K3}
    assert set(cleaning.stages_to_remove(store, None, None, 2000)) == {K1}, "the oldest first"
    assert cli.run(["cache", "gc", str(store.path), "--lock", str(lock), "--dry-run"]) == 0
    assert "2 of 3 stages" in capsys.readouterr().err
    assert len(store.finished()) == 3
    assert cli.run(["cache", "gc", str(store.path), "--lock", str(lock)]) == 0
    assert store.finished() == [K2]
    assert cli.run(["cache", "gc", str(store.path)]) == 2
    assert cli.run(["cache", "ls", str(store.path), "--json"]) == 0
    assert [each["key"] for each in json.loads(capsys.readouterr().out)["stages"]] == [K2]


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "file"
    file.write_text("one")
    os.utime(file, (1e9, 1e9))
    first = store.sum_of(file)
    assert len(list((tmp_path / "store" / "sums").iterdir())) == 1
    file.write_text("two")
    assert store.sum_of(file) != first
