"""The artifact: written whole or not at all, and nothing is believed that its hashes do not confirm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from bertc import targets
from bertc.artifact import manifest as artifact
from bertc.artifact.manifest import open_artifact, staging
from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError, BertcError, Missing


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    source = tiny.encoder(folder / "m.onnx", tokenizer=True)
    assert cli.run(["build", str(source), "--fp32", "--target", "onnxruntime", "-o", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def refused(call: Callable[[], Any], *words: str, kind: type[BertcError] = ArtifactError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def fake(folder: Path, mark: str = "") -> Path:
    """A folder that bertc made, as far as --force can tell."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "bertc": "0", "mark": mark}))
    return folder


def mark(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["mark"])


def stage_one(out: Path, force: bool = False, text: str = "new") -> None:
    with staging(out, force) as stage:
        (stage / "manifest.json").write_text(json.dumps({"format": 1, "bertc": "0", "mark": text}))


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


# Staging


def test_installed_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out[1]"
    with staging(out, False) as stage:
        assert stage.parent == out.parent
        assert not out.exists()
        (stage / "x").write_text("1")
    assert (out / "x").read_text() == "1"
    assert os.listdir(out.parent) == ["out[1]"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_vanishes_on_any_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def stopped(out: Path, force: bool) -> None:
        with staging(out, force) as stage:
            (stage / "half").write_text("1")
            raise error

    fake(tmp_path / "old", "old")
    for name, force in (("new", False), ("old", True)):
        with pytest.raises(error):
            stopped(tmp_path / name, force)
    assert os.listdir(tmp_path) == ["old"]
    assert mark(tmp_path / "old") == "old"


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    out = fake(tmp_path / "out", "old")
    refused(lambda: stage_one(out), "exists", "--force", "-o")
    assert mark(out) == "old"
    stage_one(out, force=True)
    assert mark(out) == "new"
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / "empty").mkdir()
    stage_one(tmp_path / "empty")
    assert mark(tmp_path / "empty") == "new"


def test_force_replaces_nothing_that_bertc_did_not_make(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "thesis.tex").write_text("years of work")
    web = tmp_path / "web"  # other programs have a manifest.json too
    web.mkdir()
    (web / "manifest.json").write_text('{"name": "web app"}')
    mixed = tmp_path / "mixed"  # one artifact among a user's own folders
    fake(mixed / "onnxruntime-fp32")
    (mixed / "photos").mkdir()
    for out in (plain, web, mixed):
        before = sorted(out.rglob("*"))
        refused(lambda out=out: stage_one(out, force=True), "did not write", "--force")  # type: ignore[misc]
        assert sorted(out.rglob("*")) == before
    several = fake(tmp_path / "several" / "null-fp32").parent
    fake(several / "onnxruntime-fp16")
    stage_one(several, force=True)
    assert mark(several) == "new"


def test_force_replaces_a_damaged_artifact(copy: Path) -> None:
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes()[:50])
    stage_one(copy, force=True)
    assert mark(copy) == "new"


def test_impossible_outputs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    refused(lambda: stage_one(file, force=True), "is a file", "directory")
    refused(lambda: stage_one(file / "below"), "cannot write", "choose another -o")
    refused(lambda: stage_one(tmp_path / ("n" * 250)), "too long", "choose another -o")
    assert file.read_text() == "x"
    assert os.listdir(tmp_path) == ["file"]


def test_a_mount_point_is_refused() -> None:
    refused(lambda: stage_one(Path("/"), force=True), "mount point", "-o /NAME")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    fake(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stage_one(tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert mark(tmp_path / "real") == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere: permissions cannot be tested as root")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(lambda: stage_one(closed / "out"), "cannot write", "choose another -o")


def test_failures_of_the_second_rename_bring_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = fake(tmp_path / "out", "old"), Path.rename
    monkeypatch.setattr("bertc.artifact.staged.exchange", lambda one, other: False)  # a file system that cannot

    for error, wanted in ((OSError(28, "full"), Missing), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fails(self: Path, target: Path, error: BaseException = error) -> Path:
            if ".tmp-" in self.name:
                raise error
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fails)
            with pytest.raises(wanted):
                stage_one(out, force=True)
        assert mark(out) == "old"
        assert os.listdir(tmp_path) == ["out"]


# What a killed build left


def test_leftovers_of_dead_builds_are_cleared(tmp_path: Path) -> None:
    dead = dead_pid()
    out = fake(tmp_path / "out", "now")
    fake(tmp_path / f".out.tmp-{dead}")
    fake(tmp_path / f".out.old-{dead}", "before")
    stage_one(out, force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert mark(out) == "new"


def test_an_artifact_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fake(tmp_path / f".out.old-{dead_pid()}", "old")
    refused(lambda: stage_one(out), "exists", "--force")
    assert mark(out) == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_live_builds_and_folders_of_a_user_are_left_alone(tmp_path: Path) -> None:
    names = {f".out.tmp-{os.getppid()}", f".out.old-{os.getppid()}", ".out.old-backup", ".out.tmp-", f".other.tmp-{dead_pid()}"}
    for name in names:
        fake(tmp_path / name)
    stage_one(tmp_path / "out")
    assert set(os.listdir(tmp_path)) == names | {"out"}


def test_the_number_of_a_dead_build_was_given_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder was last touched before the process of that number began: it is not its folder."""
    for pid in (os.getppid(), os.getpid()):
        fake(tmp_path / f".out.tmp-{pid}")
    monkeypatch.setattr("bertc.artifact.staged.started_at", lambda pid: time.time() + 60)
    stage_one(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_build_of_the_same_number_in_another_container_is_left_alone(tmp_path: Path) -> None:
    fake(tmp_path / f".out.tmp-{os.getpid()}")
    stage_one(tmp_path / "out")
    assert set(os.listdir(tmp_path)) == {"out", f".out.tmp-{os.getpid()}"}


@pytest.mark.parametrize("kind", ["tmp-1", "tmp-2-34", "old-7"])
def test_what_a_killed_build_left_is_no_artifact(
    built: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Path(shutil.copytree(built, tmp_path / f".out.{kind}"))
    refused(lambda: open_artifact(left), "build writes there, or was killed")
    assert artifact.find_artifacts(tmp_path) == (tmp_path,)
    assert cli.run(["verify", str(left)]) == 2
    assert "was killed" in capsys.readouterr().err


def test_an_engine_is_made_of_the_bytes_that_were_hashed(copy: Path) -> None:
    """Whoever writes between the check and the load is found: there is no second opening."""
    found = open_artifact(copy)
    data = bytearray((copy / "model.onnx").read_bytes())
    data[-1] ^= 1
    (copy / "model.onnx").write_bytes(data)
    refused(lambda: targets.get(found.target).load(copy, found.manifest), "model.onnx", "differs")


def test_an_artifact_that_is_replaced_while_it_is_opened(built: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` during `build --force`: a manifest of the old one and files of the new one are no damage."""
    rewrite(copy, lambda m: m["files"]["graph.onnx"].update(sha256="0" * 64))
    whole, first = artifact._opened, [True]

    def replaced(path: Path, *more: Any) -> artifact.Artifact:
        try:
            return whole(path, *more)
        finally:
            if first.pop() if first else False:
                shutil.copy(built / "manifest.json", copy / "manifest.json")

    monkeypatch.setattr(artifact, "_opened", replaced)
    assert open_artifact(copy).target == "onnxruntime"


# Hashes and the manifest


def test_the_manifest_lists_every_file(built: Path) -> None:
    listed = open_artifact(built).manifest["files"]
    found = {p.relative_to(built).as_posix(): p for p in built.rglob("*") if p.is_file()}
    assert set(listed) == set(found) - {"manifest.json"}
    assert {"graph.onnx", "model.onnx", "goldens.npz", "report.json", "tokenizer/tokenizer.json"} <= set(listed)
    for name, entry in listed.items():
        data = found[name].read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}, name


@pytest.mark.parametrize("name", ["graph.onnx", "model.onnx", "goldens.npz", "report.json", "tokenizer/tokenizer.json"])
def test_one_changed_bit_or_a_missing_file_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    refused(lambda: open_artifact(copy), name, "sha256", "build it again")
    (copy / name).unlink()
    refused(lambda: open_artifact(copy), name, "is missing", "copy the whole directory")


@pytest.mark.parametrize("command", ["verify", "inspect", "build"])
def test_every_command_checks_hashes_first(copy: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (copy / "goldens.npz").open("ab") as file:
        file.write(b"x")
    more = ["--target", "null", "--fp32", "-o", str(copy.parent / "new")] if command == "build" else []
    assert cli.run([command, str(copy), *more]) == 2
    assert "goldens.npz differs from the file that was built" in capsys.readouterr().err
    assert not (copy.parent / "new").exists()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda m: m.pop("files"),
    "no target": lambda m: m.pop("target"),
    "no engine": lambda m: m.pop("engine"),
    "no format": lambda m: m.pop("format"),
    "format of no number": lambda m: m.update(format="one"),
    "files of another type": lambda m: m.update(files=["graph.onnx"]),
    "a file without a hash": lambda m: m["files"].update({"graph.onnx": {}}),
    "graph not listed": lambda m: m["files"].pop("graph.onnx"),
    "inputs of another type": lambda m: m.update(inputs=["input_ids"]),
    "a profile that is none": lambda m: m.update(profiles=[{"batch": "1:2"}]),
    "precision of another type": lambda m: m.update(precision="fp32"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest(copy: Path, what: str) -> None:
    rewrite(copy, DAMAGE[what])
    refused(lambda: open_artifact(copy), "manifest.json", "is damaged", "build the artifact again")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_a_manifest_that_is_no_manifest(copy: Path, data: bytes) -> None:
    (copy / "manifest.json").write_bytes(data)
    refused(lambda: open_artifact(copy), "manifest.json", "is damaged")


def test_a_truncated_manifest(copy: Path) -> None:
    data = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(data[: len(data) // 2])
    refused(lambda: open_artifact(copy), "is damaged", "it is no JSON", "line ")


def test_a_newer_format(copy: Path) -> None:
    rewrite(copy, lambda m: m.update(format=artifact.FORMAT + 1))
    refused(lambda: open_artifact(copy), f"format {artifact.FORMAT + 1}", "pip install -U bertc")


def test_files_outside_the_artifact(copy: Path) -> None:
    secret = copy.parent / "secret"
    secret.write_text("key")
    entry = {"sha256": hashlib.sha256(b"key").hexdigest(), "bytes": 3}
    for name in ("../secret", str(secret)):
        rewrite(copy, lambda m, name=name: m["files"].update({name: entry}))  # type: ignore[misc]
        refused(lambda: open_artifact(copy), repr(name), "outside the artifact")
        rewrite(copy, lambda m, name=name: m["files"].pop(name))  # type: ignore[misc]
    (copy / "link").symlink_to(secret)
    rewrite(copy, lambda m: m["files"].update(link=entry))
    refused(lambda: open_artifact(copy), "'link'", "outside the artifact")


def test_no_artifact_at_all(tmp_path: Path) -> None:
    refused(lambda: open_artifact(tmp_path), "not a bertc artifact", "found: nothing")
    refused(lambda: open_artifact(tmp_path / "gone"), "no such directory")
    (tmp_path / "a.txt").write_text("")
    refused(lambda: open_artifact(tmp_path), "no manifest.json (found: a.txt)")


def test_model_and_graph_are_one_file(built: Path, copy: Path) -> None:
    assert (built / "model.onnx").samefile(built / "graph.onnx")
    assert not (copy / "model.onnx").samefile(copy / "graph.onnx")  # a copy of the folder is an artifact all the same
    assert open_artifact(copy).manifest == open_artifact(built).manifest


# Opened again by another process


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files, as they are hashed."""
    names: list[str] = []
    of_file = artifact.hash_file

    def hash_file(path: Path) -> str:
        names.append(path.name)
        return of_file(path)

    monkeypatch.setattr(artifact, "hash_file", hash_file)
    return names


def test_what_was_hashed_is_not_hashed_again_and_what_changed_is(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SETTLED", 0)
    names = hashed(monkeypatch)
    _, seen = artifact.open_stamped(copy)
    assert "model.onnx" in names
    names.clear()
    open_artifact(copy, seen)
    assert names == []
    data = bytearray((copy / "model.onnx").read_bytes())
    data[-1] ^= 1
    (copy / "model.onnx").write_bytes(data)  # as long as it was
    refused(lambda: open_artifact(copy, seen), "model.onnx", "differs")
    assert names == ["model.onnx"]


def test_stamps_do_not_outlive_their_manifest(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another manifest may name other hashes for the same files."""
    monkeypatch.setattr(artifact, "SETTLED", 0)
    _, seen = artifact.open_stamped(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: open_artifact(copy, seen), "model.onnx", "differs")


def test_what_was_written_a_moment_ago_is_hashed_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SETTLED", 10**15)
    _, seen = artifact.open_stamped(copy)
    names = hashed(monkeypatch)
    open_artifact(copy, seen)
    assert "model.onnx" in names
