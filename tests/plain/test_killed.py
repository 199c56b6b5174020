"""A build that is killed, interrupted or runs out of room leaves the old artifact or none, and the next build cleans up."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import tiny
from forked import FORKS, Child, start

from bertc.artifact import manifest as artifact
from bertc.cli import _main as cli


def paused(module: str, name: str, when: str, ready: Connection, words: list[str]) -> None:
    """A process: a real build that stops at a chosen moment, says so, and waits for its end."""
    owner = Path if module == "Path" else importlib.import_module(f"bertc.{module}")
    if module == "Path":  # as on a file system that cannot exchange two names
        importlib.import_module("bertc.artifact.staged").exchange = lambda one, other: False  # type: ignore[attr-defined]
    real = getattr(owner, name)

    def pausing(*arguments: Any, **options: Any) -> Any:
        setattr(owner, name, real)  # once: what a signal sets going must not wait
        result = real(*arguments, **options) if when == "after" else None
        ready.send("ready")
        time.sleep(60)
        return result if when == "after" else real(*arguments, **options)

    setattr(owner, name, pausing)
    sys.exit(cli.run(words))


# (module of bertc, function, before or after it): one for each stage, and both sides of every rename.
MOMENTS = [
    ("pipeline", "open_source", "before"),
    ("pipeline", "check_export", "after"),
    ("pipeline", "save_graph", "after"),
    ("artifact.goldens", "_write", "after"),
    ("verification.verdict", "run_and_judge", "before"),
    ("artifact.manifest", "write_manifest", "after"),
    ("artifact.staged", "exchange", "before"),
    ("artifact.staged", "exchange", "after"),
    ("Path", "rename", "before"),
    ("Path", "rename", "after"),
]
SIGNALS = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("killed") / "m.onnx")


@pytest.fixture(scope="module")
def old(model: Path) -> Path:
    """The artifact of an earlier build: null, bf16."""
    assert cli.run(["build", str(model), "--target", "null=bf16", "-o", str(model.parent / "old")]) == 0
    return model.parent / "old"


def build(model: Path, out: Path) -> list[str]:
    return ["build", str(model), "--fp32", "--target", "onnxruntime", "--force", "-o", str(out)]


def begin(moment: tuple[str, str, str], words: list[str]) -> Child:
    """A build that has come to the moment."""
    ready, theirs = FORKS.Pipe(duplex=False)
    child = start(paused, *moment, theirs, words)
    theirs.close()
    assert ready.recv() == "ready"  # EOFError where it ends before
    return child


def stop(moment: tuple[str, str, str], number: signal.Signals, words: list[str]) -> tuple[int | None, str]:
    """Start the build, send the signal at the moment, and return its exit code and what it said."""
    child = begin(moment, words)
    child.send(number)
    return child.ended()


def check_whole(out: Path) -> str | None:
    """The target of the artifact at `out`, which must be one by its hashes; None when there is nothing."""
    return artifact.open_artifact(out).target if out.exists() else None


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: "-".join(m))
def test_stopped_over_an_old_artifact(
    moment: tuple[str, str, str], number: signal.Signals, model: Path, old: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(old, out)
    code, err = stop(moment, number, build(model, out))
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        whole = {"exchange": ("null", "onnxruntime"), "rename": ("null", None)}.get(moment[1], ("null",))
        assert check_whole(out) in whole
    else:
        assert code == 130
        assert "interrupted: nothing was written" in err.splitlines()[-1]
        assert "Traceback" not in err
        assert check_whole(out) == "null"
        assert os.listdir(tmp_path) == ["out"]
    assert cli.run(build(model, out)) == 0
    assert check_whole(out) == "onnxruntime"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_stopped_with_nothing_there(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop(("artifact.manifest", "write_manifest", "after"), number, build(model, out))
    assert not out.exists()
    assert len(os.listdir(tmp_path)) == (1 if number == signal.SIGKILL else 0)
    assert cli.run([w for w in build(model, out) if w != "--force"]) == 0
    assert os.listdir(tmp_path) == ["out"]


def test_killed_between_the_renames_the_old_artifact_comes_back(model: Path, old: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(old, out)
    stop(("Path", "rename", "after"), signal.SIGKILL, build(model, out))
    assert not out.exists()
    assert cli.run([w for w in build(model, out) if w != "--force"]) == 2  # it exists again
    assert check_whole(out) == "null"
    assert os.listdir(tmp_path) == ["out"]


def test_a_build_that_is_running_is_left_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = begin(("artifact.manifest", "write_manifest", "after"), build(model, out))
    assert cli.run(build(model, out)) == 0
    assert sorted(os.listdir(tmp_path)) == [f".out.tmp-{child.process.pid}", "out"]
    child.send(signal.SIGTERM)
    assert child.ended()[0] == 130
    assert os.listdir(tmp_path) == ["out"]
    assert check_whole(out) == "onnxruntime"


# No room


def limited(size: int, words: list[str]) -> None:
    """A process that can write no file larger than this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.exit(cli.run(words))


def biggest(model: Path, folder: Path) -> list[int]:
    """The sizes of the files of a build, in the order of size: limits just below them fail at each of them."""
    assert cli.run(build(model, folder / "sizes")) == 0
    found = sorted({p.stat().st_size for p in (folder / "sizes").iterdir()})
    shutil.rmtree(folder / "sizes")
    return found


@pytest.mark.parametrize("existing", [False, True], ids=["nothing there", "over an old artifact"])
def test_a_limit_on_the_size_of_files(existing: bool, model: Path, old: Path, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    out = tmp_path / "out"
    sizes = biggest(model, tmp_path)
    if existing:
        shutil.copytree(old, out)
    for limit in (0, sizes[0] - 1, sizes[-2] - 1, sizes[-1] - 1):
        code, err = start(limited, limit, build(model, out)).ended()
        assert code == 3, (limit, err)
        assert "no room" in err.splitlines()[-1]
        assert "free some space" in err.splitlines()[-1]
        assert check_whole(out) == ("null" if existing else None)
        assert os.listdir(tmp_path) == (["out"] if existing else [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k"):
        pytest.skip(f"a small file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount(os.fsencode(folder))


def test_a_full_disk(model: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_disk / "fill").write_bytes(bytes(4096))
    assert cli.run(build(model, small_disk / "out")) == 3
    err = capsys.readouterr().err.splitlines()[-1]
    assert "no room to write" in err
    assert "MiB free); free some space" in err
    assert os.listdir(small_disk) == ["fill"]
    assert cli.run(build(model, small_disk)) == 2
    assert "is a mount point" in capsys.readouterr().err
