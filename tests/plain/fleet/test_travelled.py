"""A store, a lock, an `out` folder and a fleet file of someone else: data, which leads nowhere and runs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fleets
import pytest

from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError
from bertc.fleet import lock, outputs, status, travelled
from bertc.fleet.plan import plan_fleet
from bertc.fleet.store import Store

KEY = "a" * 64
NO_KEYS = ["../../secret", "/etc", "", "a" * 63, "A" * 64, "a" * 64 + "\n", "..", "aa/../../x", None, 3, ["a" * 64]]
NO_FILES = ["../x", "a/../../x", "/etc/passwd", "C:\\x", "C:x", "..\\x", "\\\\host\\share", "", "a\0b", 3, "//host/share"]
Capture = pytest.CaptureFixture[str]


def put(store: Store, key: str = KEY, text: str = "x") -> Path:
    with store.staging() as folder:
        (folder / "file").write_text(text)
        store.put(key, folder, {"slot": "m/s", "inputs": {"stage": "build"}, "seconds": 1.0})
    return store.folder(key)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.chmod(0o644)
    file.write_text(json.dumps(document))


# Names


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_becomes_no_path(key: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no key"):
        Store(tmp_path).folder(key)


@pytest.mark.parametrize("name", NO_FILES)
def test_a_name_that_leaves_its_folder(name: Any) -> None:
    assert not travelled.is_file_name(name)


@pytest.mark.parametrize("name", ["graph.onnx", "tokenizer/vocab.txt", "a..b", ".hidden", "café/ü", "a b"])
def test_a_name_that_stays(name: str) -> None:
    assert travelled.is_file_name(name)


def test_what_is_not_printable_is_spelled_out() -> None:
    assert travelled.shown("a\x1b[2Jb\u202ec\r\nd\ud800") == "a\\x1b[2Jb\\u202ec\\r\\nd\\ud800"
    assert travelled.shown("café → 日本") == "café → 日本"


# The store


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["files"].update({"../../../secret": {"sha256": "0" * 64, "bytes": 1}}),
        lambda r: r.update(files=["file"]),
        lambda r: r["files"]["file"].update(sha256="no"),
        lambda r: r["files"]["file"].update(bytes=-1),
        lambda r: r.update(key="b" * 64),
        lambda r: r.update(digest="../x"),
        lambda r: r.update(digest="0" * 64),
        lambda r: r.update(slot="\x1b[31m/x"),
        lambda r: r.update(slot="../../x"),
        lambda r: r.update(inputs="os.system"),
        lambda r: r.update(inputs={"stage": "build", "code": [1]}),
        lambda r: r.update(seconds="1"),
        lambda r: r.update(made=float("nan")),
        lambda r: r.update(peak_bytes=10**400),
        dict.clear,
    ],
)
def test_a_record_that_was_not_written_for_its_key(change: Callable[[Any], Any], tmp_path: Path, capsys: Capture) -> None:
    store = Store(tmp_path / "store")
    edit(put(store) / "record.json", change)
    with pytest.raises(ArtifactError, match="cache verify --repair"):
        store.whole_record(KEY)
    with pytest.raises(ArtifactError):
        outputs.place(store, KEY, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert cli.run(["cache", "ls", str(store.path)]) == 0
    assert "\x1b[31m" not in capsys.readouterr().err
    assert cli.run(["cache", "verify", str(store.path)]) == 1
    assert cli.run(["cache", "verify", str(store.path), "--repair"]) == 0
    assert store.finished() == [], "the advice works"


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "3", '{"key": ', "\0"])
def test_a_record_that_is_no_object(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (put(store) / "record.json").write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        store.record(KEY)


def extra(folder: Path, secret: Path) -> None:
    (folder / "extra.onnx").write_text("planted")


def linked_file(folder: Path, secret: Path) -> None:
    (folder / "file").unlink()
    (folder / "file").symlink_to(secret)  # of the same contents: a hash alone would not tell


def linked_folder(folder: Path, secret: Path) -> None:
    (folder / "more").symlink_to(secret.parent)


def other_bytes(folder: Path, secret: Path) -> None:
    (folder / "file").chmod(0o644)
    (folder / "file").write_text("y")


def pipe(folder: Path, secret: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("spoil", [extra, linked_file, linked_folder, other_bytes, pipe])
def test_a_stage_is_used_only_if_it_is_what_was_made(spoil: Callable[[Path, Path], None], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    secret = tmp_path / "mine" / "secret"
    secret.write_text("x")
    store = Store(tmp_path / "store")
    spoil(put(store), secret)
    with pytest.raises(ArtifactError, match="cache verify --repair"):
        outputs.place(store, KEY, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert cli.run(["cache", "verify", str(store.path), "--repair"]) == 0
    assert store.finished() == [] and secret.read_text() == "x"


@pytest.mark.parametrize("name", ["objects", "objects/aa", f"objects/aa/{KEY}", "tmp", "locks", "journal.jsonl"])
def test_no_link_leads_out_of_a_store(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / ("f" * 32)).mkdir(parents=True)
    (mine / "keep").mkdir()
    before = sorted(mine.rglob("*"))
    store = Store(tmp_path / "store")
    link = store.path / name
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    with pytest.raises(ArtifactError, match="is a link"):
        use(store)
    if name == "tmp":
        with pytest.raises(ArtifactError, match="is a link"):
            store.sweep()
    assert sorted(mine.rglob("*")) == before, "nothing was written or swept there"


def use(store: Store) -> None:
    put(store)
    with store.lock(KEY):
        pass


def test_a_linked_lock_file_and_slot_are_not_followed(tmp_path: Path) -> None:
    store, mine = Store(tmp_path / "store"), tmp_path / "mine"
    mine.write_text("precious")
    for name in (f"locks/{KEY}.lock", "slots/m@s.json"):
        (store.path / name).parent.mkdir(parents=True)
        (store.path / name).symlink_to(mine)
    with pytest.raises(ArtifactError, match="is a link"), store.lock(KEY):
        pass
    with pytest.raises(ArtifactError, match="is a link"):
        store.slot("m/s")
    assert mine.read_text() == "precious"


def test_sweep_takes_only_what_a_store_names_so(tmp_path: Path) -> None:
    """A store may be any folder that a fleet file names: its tmp/ may be anybody's."""
    for name in ("project", "f" * 32, f"{KEY}-{'f' * 32}"):
        (tmp_path / "tmp" / name).mkdir(parents=True)
    Store(tmp_path).sweep()
    assert [p.name for p in (tmp_path / "tmp").iterdir() if p.is_dir()] == ["project"]


def test_what_lies_among_the_stages_and_is_none(tmp_path: Path, capsys: Capture) -> None:
    store, mine = Store(tmp_path / "store"), tmp_path / "mine"
    (mine / KEY).mkdir(parents=True)
    put(store)
    (store.path / "objects" / "bb").symlink_to(mine)
    (store.path / "objects" / "aa" / "\x1b[2J").mkdir()
    (store.path / "objects" / "aa" / ("b" * 64)).mkdir()
    assert store.finished() == [KEY]
    assert cli.run(["cache", "verify", str(store.path)]) == 1
    said = capsys.readouterr().err
    assert "\x1b[2J" not in said and "aa/\\x1b[2J" in said
    assert cli.run(["cache", "verify", str(store.path), "--repair"]) == 0
    assert store.strays() == [] and store.finished() == [KEY]
    assert (mine / KEY).is_dir(), "the link went, not what it led to"


def test_a_half_made_folder_is_nobody_elses_and_a_finished_one_is_shared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staging() as folder:
        assert folder.stat().st_mode & 0o077 == 0, "a job lies in it, and a job says what to run"
    assert put(store).stat().st_mode & 0o777 == (tmp_path / "objects").stat().st_mode & 0o777


# A fleet


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    path = fleets.write(folder, "a", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    assert cli.run(["fleet", "build", str(path)]) == 0
    return path


@pytest.fixture
def fleet_file(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built.parent, tmp_path / "theirs")
    return tmp_path / "theirs" / "fleet.toml"


@pytest.mark.parametrize("value", ["../../secret", "a" * 63, 3, None, {}])
def test_a_slot_that_names_no_key(value: Any, fleet_file: Path, capsys: Capture) -> None:
    """And what to do about it works."""
    slot = fleet_file.parent / ".bertc-store" / "slots" / "a@export.json"
    edit(slot, lambda found: found.update(key=value))
    assert cli.run(["fleet", "plan", str(fleet_file)]) == 2
    assert "delete it" in capsys.readouterr().err
    slot.unlink()
    assert cli.run(["fleet", "plan", str(fleet_file)]) == 0


def test_a_failure_that_a_store_remembers_is_printable(fleet_file: Path, capsys: Capture) -> None:
    whole, store = fleets.opened(fleet_file)
    (step,) = (s for s in plan_fleet(whole, store) if s.task.slot == "a/null-fp32")
    store.remove(str(step.key))
    for error in ("\x1b]0;owned\x07\x1b[2J", "", "\n\n"):
        store.set_slot("a/null-fp32", {"failure": {"key": step.key, "error": error}})
        assert cli.run(["fleet", "plan", str(fleet_file)]) == 0
        said = capsys.readouterr().err
        assert "failed" in said and "\x1b]" not in said and "\x07" not in said


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["stages"]["a/export"].update(key="../../x"),
        lambda f: f["stages"]["a/export"].update(digest=None),
        lambda f: f["stages"]["a/export"].update(inputs=["stage"]),
        lambda f: f["stages"].update({"../../x": f["stages"]["a/export"]}),
        lambda f: f["entries"].update({"/etc/cron.d/x": f["entries"]["a/null-fp32"]}),
        lambda f: f["entries"].update({"a/null-fp32": "x"}),
        lambda f: f["entries"]["a/null-fp32"].update(files={"../x": "0" * 64}),
        lambda f: f.update(stages=[["a", 1]]),
        lambda f: f.update(code={"fleet/x.py": "os.system"}),
        lambda f: f.update(format="9"),
    ],
)
def test_a_lock_of_another_shape(change: Callable[[Any], Any], fleet_file: Path, capsys: Capture) -> None:
    edit(fleet_file.with_suffix(".lock.json"), change)
    for words in (["status"], ["build", "--locked"], ["verify"]):
        assert cli.run(["fleet", *words[:1], str(fleet_file), *words[1:]]) == 2, words
        assert "is damaged" in capsys.readouterr().err
    fleet_file.with_suffix(".lock.json").unlink()
    assert cli.run(["fleet", "build", str(fleet_file)]) == 0, "the advice works"


def test_drift_from_a_lock_is_told_in_printable_words(fleet_file: Path, capsys: Capture) -> None:
    def change(found: dict[str, Any]) -> None:
        found["stages"]["a/export"]["inputs"]["tools"]["\x1b[2Jtool"] = "\u202e1"
        found["stages"]["a/export"]["key"] = "0" * 64

    edit(fleet_file.with_suffix(".lock.json"), change)
    assert cli.run(["fleet", "build", str(fleet_file), "--locked"]) == 1
    said = capsys.readouterr().err
    assert "\\x1b[2Jtool" in said and "\x1b[2J" not in said and "\u202e" not in said


def test_locked_is_held_against_the_files_and_not_against_what_a_store_says_of_them(fleet_file: Path, capsys: Capture) -> None:
    """Another graph under the locked digest: the store is whole by its own words."""
    whole, store = fleets.opened(fleet_file)
    key = lock.read(whole)["stages"]["a/null-fp32"]["key"]
    graph = store.folder(key) / "graph.onnx"
    data, before = bytearray(graph.read_bytes()), store.record(key)["files"]["graph.onnx"]
    data[-1] ^= 1
    graph.chmod(0o644)
    graph.write_bytes(data)
    told = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(store.folder(key) / "record.json", lambda found: found["files"].update({"graph.onnx": told}))
    with pytest.raises(ArtifactError, match="digest is not that of its files"):
        store.whole_record(key)
    assert cli.run(["fleet", "build", str(fleet_file), "--locked"]) == 0
    assert "digest is not that of its files): made again" in " ".join(capsys.readouterr().err.split())
    assert store.whole_record(key)["files"]["graph.onnx"] == before


@pytest.mark.parametrize("name", ["a", "a/null-fp32"])
def test_no_link_in_out_is_followed(name: str, fleet_file: Path, capsys: Capture) -> None:
    mine = fleet_file.parent.parent / "mine"
    mine.mkdir()
    (mine / "keep").write_text("precious")
    place = fleet_file.parent / "out" / name
    shutil.rmtree(place)
    place.symlink_to(mine)
    for verb in ("build", "status", "verify"):
        assert cli.run(["fleet", verb, str(fleet_file)]) == 2, verb
        captured = capsys.readouterr()
        assert "is a link" in captured.err + captured.out
    assert [p.name for p in mine.iterdir()] == ["keep"]


def test_the_whole_of_out_or_of_a_store_may_be_a_link(fleet_file: Path) -> None:
    for name in ("out", ".bertc-store"):
        (fleet_file.parent / name).rename(fleet_file.parent / f"disk-{name}")
        (fleet_file.parent / name).symlink_to(fleet_file.parent / f"disk-{name}")
    assert cli.run(["fleet", "build", str(fleet_file)]) == 0
    found = status.status_document(*fleets.opened(fleet_file))
    assert [entry["state"] for entry in found["entries"]] == ["built"]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(engine=[]),
        lambda f: f.update(engine={"kernels": {"count": "\x1b[2J"}}),
        lambda f: f.update(precision={"mode": "\x1b[2J"}),
        lambda f: f.update(precision="fp32"),
        dict.clear,
    ],
)
def test_the_status_of_an_artifact_of_another_shape(change: Callable[[Any], Any], fleet_file: Path, capsys: Capture) -> None:
    edit(fleet_file.parent / "out" / "a" / "null-fp32" / "manifest.json", change)
    assert cli.run(["fleet", "status", str(fleet_file)]) == 0
    assert "\x1b[2J" not in capsys.readouterr().err


def test_the_notes_of_a_stage_of_another_shape_are_damage_and_no_bug(fleet_file: Path) -> None:
    from bertc.fleet import stages

    folder = fleet_file.parent
    for text in ("{}", "[]", '{"change": {"applied": [{"__class__": "os.system"}], "refusals": []}}', '{"change": 3}'):
        (folder / stages.FUSED).write_text(text)
        with pytest.raises(ArtifactError, match="damaged"):
            stages._fused(folder)
