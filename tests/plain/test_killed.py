"""A build that is killed, interrupted or runs out of room leaves the old artifact or none, and the next build cleans up."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from bertc import artifact, cli

# Runs a real build that stops at a chosen moment, says so, and waits for its end.
PAUSED = textwrap.dedent("""
    import importlib, sys, time
    from pathlib import Path
    module, name, when = sys.argv[1:4]
    owner = Path if module == "Path" else importlib.import_module(f"bertc.{module}")
    real = getattr(owner, name)

    def paused(*arguments, **options):
        setattr(owner, name, real)  # once: what a signal sets going must not wait
        result = real(*arguments, **options) if when == "after" else None
        print("ready", flush=True)
        time.sleep(60)
        return result if when == "after" else real(*arguments, **options)

    setattr(owner, name, paused)
    from bertc import cli
    sys.exit(cli.run(sys.argv[4:]))
""")
# (module of bertc, function, before or after it): one for each stage, and both sides of every rename.
MOMENTS = [
    ("pipeline", "open_source", "before"),
    ("pipeline", "prove", "after"),
    ("pipeline", "save", "after"),
    ("goldens", "_write", "after"),
    ("verification", "judge", "before"),
    ("artifact", "write_manifest", "after"),
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


def stop(moment: tuple[str, str, str], number: signal.Signals, words: list[str]) -> tuple[int, str]:
    """Start the build, send the signal at the moment, and return its exit code and what it said."""
    command = [sys.executable, "-c", PAUSED, *moment, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        ready = child.stdout.readline()
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    assert ready == "ready\n", err
    return child.returncode, err


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
        assert check_whole(out) in ("null", None)
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
    stop(("artifact", "write_manifest", "after"), number, build(model, out))
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
    command = [sys.executable, "-c", PAUSED, "artifact", "write_manifest", "after", *build(model, out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert cli.run(build(model, out)) == 0
        assert sorted(os.listdir(tmp_path)) == [f".out.tmp-{child.pid}", "out"]
        child.terminate()
        child.wait(30)
    assert os.listdir(tmp_path) == ["out"]
    assert check_whole(out) == "onnxruntime"


# No room

LIMITED = """
import resource, sys
from bertc import cli
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(cli.run(sys.argv[2:]))
"""


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
        command = [sys.executable, "-c", LIMITED, str(limit), *build(model, out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3, (limit, done.stderr)
        assert "no room" in done.stderr.splitlines()[-1]
        assert "free some space" in done.stderr.splitlines()[-1]
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
