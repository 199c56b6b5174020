"""Fleets of tiny models, and a pool that does tasks in this process: what a task does, without what a process costs."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lowbit
import pytest
import tiny

from bertc.fleet import config, task
from bertc.fleet.config import Fleet
from bertc.fleet.plan import Task
from bertc.fleet.run import Future, Outcome, run_fleet
from bertc.fleet.store import Store

MATRIX = 'targets = ["null"]\nprecisions = ["fp32", "bf16"]\n'


def write(folder: Path, models: str = "a", text: str = MATRIX) -> Path:
    """fleet.toml over models of one layer, each with a weight of its own."""
    for at, name in enumerate(models):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name / "m.onnx").exists():
            tiny.encoder(folder / name / "m.onnx", changed=0.1 * at)
        text += f'[models.{name}]\nsource = "{name}/m.onnx"\n'
    (folder / "fleet.toml").write_text(text, encoding="utf-8")
    return folder / "fleet.toml"


def low_bit(folder: Path, text: str) -> Path:
    """The same over one model wide enough for int8, with texts to calibrate with."""
    (folder / "a").mkdir()
    lowbit.encoder(folder / "a")
    lowbit.texts(folder / "texts.txt")
    path = write(folder, "a", text)
    path.write_text(path.read_text("utf-8") + 'data = "texts.txt"\n', encoding="utf-8")
    return path


def opened(path: Path) -> tuple[Fleet, Store]:
    fleet = config.read(path)
    return fleet, Store(fleet.store)


class Here:
    """One task at a time, in this process. `begun` lists the slots in their order."""

    def __init__(self, memory: int = 10**12, gpus: tuple[str, ...] = ()) -> None:
        self.memory, self._gpus = memory, gpus
        self.begun: list[str] = []

    def gpus(self) -> tuple[str, ...]:
        return self._gpus

    def takes(self, task: Task, memory: int) -> bool:
        return True

    def submit(self, job: Mapping[str, Any], task_: Task, memory: int) -> Future:
        self.begun.append(task_.slot)
        future: Future = concurrent.futures.Future()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # as a task's own process has it
            future.set_result(task.run(job))
        return future

    def result(self, future: Future) -> dict[str, Any]:
        return future.result()

    def stop(self) -> None:
        pass


def build(path: Path, pool: Here | None = None, **options: Any) -> dict[str, Outcome]:
    """Every outcome by its slot."""
    fleet, store = opened(path)
    return {o.task.slot: o for o in run_fleet(fleet, store, pool or Here(), lambda task, outcome: None, **options)}


def states(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {slot: outcome.state for slot, outcome in outcomes.items()}
