"""A fleet that is killed goes on from what was finished, and ends with what an undisturbed one makes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fleets
import pytest

from benchmarks.fleet_processes import below, kill, start
from bertc.fleet import config, lock, outputs
from bertc.fleet import store_cleaning as cleaning
from bertc.fleet.store import Store

MATRIX = 'targets = ["null"]\nprecisions = ["fp32", "bf16"]\n'
MOMENTS = 2  # twenty, with engines: benchmarks/bench_fleet.py


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a killed process leaves is in the store, where the next build sweeps it, not in the system's temporary folder."""
    (tmp_path / "left").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "left"))
    yield
    assert os.listdir(tmp_path / "left") == []


def calmly(path: Path) -> config.Fleet:
    """Built in this process, undisturbed."""
    fleet, store = fleets.opened(path)
    lock.write(fleet, store, list(fleets.build(path).values()), fleet)
    return fleet


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The fleet alone is killed: its tasks must die with it, or they would work on beside the next one."""
    calm = calmly(fleets.write(tmp_path / "calm", "a", MATRIX))
    path, rng = fleets.write(tmp_path / "killed", "a", MATRIX), random.Random(0)
    for _ in range(MOMENTS):
        process = start(path)
        time.sleep(rng.uniform(0.5, 2.5))
        kill(process)
        assert list(cleaning.damaged_stages(Store(tmp_path / "killed" / ".bertc-store"))) == []
    assert start(path).wait(60) == 0
    fleet, store = fleets.opened(path)
    assert lock.read(fleet) == lock.read(calm)
    for entry, told in lock.read(fleet)["entries"].items():
        assert outputs.holds_stage(store, told["key"], fleet.out / entry)
    made = [line["key"] for line in store.journal()]
    assert len(made) == len(set(made)), "nothing was made twice to the end"
    assert [name for name in os.listdir(store.path / "tmp") if not name.endswith(".lock")] == []


def test_a_task_that_is_killed_fails_alone_and_is_made_by_the_next_build(tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a", 'targets = ["null"]\nprecisions = ["fp32"]\n')
    command = [sys.executable, "-m", "bertc", "fleet", "build", str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tasks := below(process.pid)):
            time.sleep(0.01)
        os.kill(tasks[0], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "its process was killed (SIGKILL)" in err
    assert json.loads(out)["made"] == []
    assert set(fleets.states(fleets.build(path)).values()) == {"made"}
