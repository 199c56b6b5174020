"""Folders for temporary files: gone with their block, and those of killed processes with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bertc.core import scratch, sweep_scratch

HOLD = """
import time
from bertc.core import scratch
with scratch() as folder:
    (folder / "file").write_text("1")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_with_its_block(place: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch() as folder:
        (folder / "file").write_text(str(1 / len(os.listdir(folder))))
    assert os.listdir(place) == []


def test_what_a_killed_process_left_goes_and_what_is_held_stays(place: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with scratch() as mine:
            sweep_scratch()
            assert {theirs.name, mine.name} == set(os.listdir(place))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert os.listdir(place) == [theirs.name]
    sweep_scratch()
    assert os.listdir(place) == []


def test_a_folder_that_is_about_to_be_locked_stays_until_it_is_old(place: Path) -> None:
    for name in (".bertc-new-young", ".bertc-new-old", "bertc-other"):
        (place / name).mkdir()
    os.utime(place / ".bertc-new-old", (0, 0))
    (place / "bertc-work-link").symlink_to(place / "bertc-other")
    sweep_scratch()
    assert sorted(os.listdir(place)) == [".bertc-new-young", "bertc-other", "bertc-work-link"]
