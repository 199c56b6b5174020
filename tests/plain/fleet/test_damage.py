"""What lies in a store and in the places of artifacts is what was built, or it is found, said, and made or placed again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fleets
import pytest

from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError
from bertc.core.files import hash_file
from bertc.fleet import lock, outputs, status
from bertc.fleet.store import Store

Capture = pytest.CaptureFixture[str]
ENTRY = "a/null-fp32"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    assert cli.run(["fleet", "build", str(fleets.write(folder, "a", 'targets = ["null"]\nprecisions = ["fp32"]\n'))]) == 0
    return folder


@pytest.fixture
def file(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "fleet")) / "fleet.toml"


def stage(file: Path, slot: str = ENTRY) -> Path:
    fleet, store = fleets.opened(file)
    return store.folder(lock.read(fleet)["stages"][slot]["key"])


def flip(path: Path, keep_times: bool = False) -> None:
    """One bit of a file; `keep_times` as a failing disk does."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def run(capsys: Capture, *words: object) -> tuple[int, str]:
    code = cli.run(["fleet", *map(str, words)])
    return code, " ".join(capsys.readouterr().err.split())


def test_an_artifact_shares_no_file_with_the_store_and_two_names_stay_one_file(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a", 'targets = ["onnxruntime"]\nprecisions = ["fp32"]\n')
    fleet, store = fleets.opened(path)
    outcome = fleets.build(path)["a/onnxruntime-fp32"]
    out = fleet.out / "a" / "onnxruntime-fp32"
    assert outputs.place(store, str(outcome.key), out) == "it was not there"
    assert outputs.place(store, str(outcome.key), out) is None
    theirs = {each.stat().st_ino for each in store.path.rglob("*") if each.is_file()}
    assert not theirs & {each.stat().st_ino for each in out.rglob("*")}
    assert (out / "model.onnx").samefile(out / "graph.onnx")
    flip(out / "model.onnx")
    assert store.damage(str(outcome.key), anew=True) is None, "what becomes of a copy changes nothing in the store"


@pytest.mark.parametrize("words", [[], ["--locked"]], ids=["build", "locked"])
@pytest.mark.parametrize("name", ["graph.onnx", "goldens.npz", "report.json", "manifest.json"])
def test_a_changed_byte_in_a_placed_artifact(file: Path, name: str, words: list[str], capsys: Capture) -> None:
    place = file.parent / "out" / ENTRY
    before = hash_file(place / name)
    flip(place / name)
    document = status.status_document(*fleets.opened(file))
    assert document["counts"] == {"cached": 1}
    assert f"in its place {name} changed" in document["entries"][0]["reasons"][0]
    code, said = run(capsys, "build", file, *words)
    assert code == 0 and f"{name} changed" in said and "1 artifact placed" in said, said
    assert hash_file(place / name) == before
    assert status.status_document(*fleets.opened(file))["counts"] == {"built": 1}


def missing(folder: Path) -> None:
    (folder / "graph.onnx").unlink()


def changed(folder: Path) -> None:
    flip(folder / "graph.onnx")


def changed_under_its_times(folder: Path) -> None:
    flip(folder / "goldens.npz", keep_times=True)


def no_record(folder: Path) -> None:
    (folder / "record.json").unlink()


def half_a_record(folder: Path) -> None:
    (folder / "record.json").write_text((folder / "record.json").read_text()[:100])


def one_file_more(folder: Path) -> None:
    (folder / "more").write_text("")


@pytest.mark.parametrize("slot", ["a/export", ENTRY])
@pytest.mark.parametrize("spoil", [missing, changed, changed_under_its_times, no_record, half_a_record, one_file_more])
def test_a_damaged_stage_is_made_again_by_the_build_and_said(
    spoil: Callable[[Path], None], slot: str, file: Path, capsys: Capture
) -> None:
    before = lock.read(fleets.opened(file)[0])
    spoil(stage(file, slot))
    store = fleets.opened(file)[1]
    assert run(capsys, "status", file)[0] == 0, "a damaged stage is a state, and no error"
    made = fleets.build(file)
    assert made[slot].state == "made"
    assert spoil is no_record or made[slot].reason, "why is said"
    assert [o.state for s, o in made.items() if s != slot] == ["cached"], "what came out the same leaves the rest as it is"
    assert store.damage(str(made[slot].key), anew=True) is None
    code, said = run(capsys, "build", file, "--locked")
    assert code == 0 and "0 stages made" in said
    assert lock.read(fleets.opened(file)[0])["entries"] == before["entries"]


def test_bytes_that_moved_under_their_size_and_times(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """As when a disk fails: no stamp tells. --verify-bytes reads them, and so does whoever is about to use the file."""
    monkeypatch.setattr("bertc.fleet.store.FRESH", -1.0)
    fleet, store = fleets.opened(file)
    key = lock.read(fleet)["stages"][ENTRY]["key"]
    assert store.damage(key) is None
    graph = store.folder(key) / "graph.onnx"
    sums = {each: json.loads(each.read_text()) for each in (store.path / "sums").iterdir()}
    (remembered,) = (each for each, found in sums.items() if found["path"] == str(graph.resolve()))
    flip(graph, keep_times=True)
    facts = graph.stat()
    seen = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]  # ctime is the system's: it is made to agree
    remembered.write_text(json.dumps({**sums[remembered], "seen": seen}))
    assert Store(store.path).damage(key) is None
    assert "graph.onnx changed" in str(Store(store.path, verify_bytes=True).damage(key))
    assert "graph.onnx changed" in str(Store(store.path).damage(key)), "what was read is known from then on"
    remembered.write_text(json.dumps({**sums[remembered], "seen": seen}))
    shutil.rmtree(fleet.out)
    with pytest.raises(ArtifactError, match="fleet build makes it again"):
        outputs.place(Store(store.path), key, fleet.place_of(ENTRY))
    assert not fleet.place_of(ENTRY).exists()
    code, said = run(capsys, "build", file)
    assert code == 0 and "damaged in the store" in said, "the advice works"
    assert fleet.place_of(ENTRY).exists()


def test_links_of_an_earlier_version_become_copies(file: Path, capsys: Capture) -> None:
    fleet, store = fleets.opened(file)
    key = lock.read(fleet)["stages"][ENTRY]["key"]
    graph = fleet.place_of(ENTRY) / "graph.onnx"
    graph.unlink()
    graph.hardlink_to(store.folder(key) / "graph.onnx")
    code, said = run(capsys, "build", file)
    assert code == 0 and "is a hard link to the store: placed again" in said
    assert not graph.samefile(store.folder(key) / "graph.onnx")


@pytest.mark.parametrize("name", ["graph.onnx", "goldens.npz", "manifest.json"])
def test_verify_of_a_wrong_artifact_is_a_failed_check(file: Path, name: str, capsys: Capture) -> None:
    place = file.parent / "out" / ENTRY
    (place / name).write_bytes((place / name).read_bytes()[:-9])
    code, said = run(capsys, "verify", file)
    assert code == 1 and f"{ENTRY}: FAILED" in said and "bertc fleet build" in said
    assert run(capsys, "build", file)[0] == 0
    assert run(capsys, "verify", file)[0] == 0, "the advice works"
