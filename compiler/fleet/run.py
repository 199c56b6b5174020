"""The tasks of a fleet in order, on a pool: this machine's (local.py) or a cluster's (ray.py)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from . import critical_path as order
from . import keys, plan
from .config import Fleet
from .plan import GB, Step, Task
from .store import Store

Future = concurrent.futures.Future[dict[str, Any]]


class Pool(Protocol):
    """Who runs tasks. `memory` is the most bytes that one task can get; `stop` ends what runs, and the pool."""

    memory: int

    def takes(self, task: Task, memory: int) -> bool: ...
    def submit(self, job: Mapping[str, Any], task: Task, memory: int) -> Future: ...
    def result(self, future: Future) -> dict[str, Any]: ...
    def stop(self) -> None: ...
    def gpus(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a task ended: made, cached (finished before, or by another fleet meanwhile), failed, skipped or other-host; and why:
    of one that was made, what was wrong with the one that lay in the store."""

    task: Task
    state: str
    key: str | None = None
    digest: str | None = None
    reason: str = ""
    exit_code: int = 0
    seconds: float = 0.0


OnEvent = Callable[[Task, Outcome | None], None]  # None: it begins


def run_fleet(
    fleet: Fleet, store: Store, pool: Pool, watch: OnEvent, *, until: str = "build", fail_fast: bool = False
) -> list[Outcome]:
    """Do every task up to a stage; a failed one ends nothing but what needs it, unless `fail_fast`.

    Stops the pool when it is interrupted.
    """
    every = plan.tasks(fleet)
    wanted = [task for task in every if keys.STAGES.index(task.stage) <= keys.STAGES.index(until)]
    waiting = order.longest_path_first(wanted, store)
    state = _State(store, pool, watch)
    try:
        while waiting or state.running:
            if fail_fast and any(outcome.state == "failed" for outcome in state.done.values()):
                pool.stop()
                for task in (*state.running.values(), *waiting):
                    state.end(Outcome(task, "skipped", reason="another task failed (--fail-fast)"))
                break
            waiting = [task for task in waiting if not state.begin(task)]
            state.collect()
    except BaseException:
        pool.stop()
        raise
    return [state.done[task.slot] for task in every if task.slot in state.done]


class _State:
    """The tasks that run and those that ended."""

    def __init__(self, store: Store, pool: Pool, watch: OnEvent) -> None:
        self.store, self.pool, self.watch = store, pool, watch
        self.here = pool.gpus()
        self.running: dict[Future, Task] = {}
        self.keys: dict[Future, str] = {}
        self.done: dict[str, Outcome] = {}
        self.steps: dict[str, Step] = {}

    def end(self, outcome: Outcome) -> bool:
        self.done[outcome.task.slot] = outcome
        self.watch(outcome.task, outcome)
        return True

    def begin(self, task: Task) -> bool:
        """Start or end a task if it can be; False where it waits for others, or for room."""
        before = {stage: self.done.get(slot) for stage, slot in task.needs.items()}
        for other in before.values():
            if other is not None and other.digest is None:
                return self.end(Outcome(task, "skipped", reason=f"{other.task.slot}: {plan.state_words(other.state)}"))
        if not all(before.values()):
            return False
        step = self._step(task, {stage: str(other.digest) for stage, other in before.items() if other})
        if step.key is None:
            return self.end(Outcome(task, "failed", reason="; ".join(step.reasons), exit_code=step.exit_code))
        if step.state == "cached":
            return self.end(_finished(step, self.store))
        if step.state == "other-host":
            return self.end(Outcome(task, "other-host", step.key, reason=step.reasons[0]))
        return self._submit(step, {stage: str(other.key) for stage, other in before.items() if other})

    def _step(self, task: Task, upstream: Mapping[str, str]) -> Step:
        """Computed once: while a task waits for room, only its result may turn up."""
        known = self.steps.get(task.slot)
        if known is None or (known.key is not None and self.store.has(known.key)):
            known = self.steps[task.slot] = plan.plan_task(task, self.store, upstream, self.here)
        return known

    def _submit(self, step: Step, before: Mapping[str, str]) -> bool:
        task, stated = step.task, step.task.entry is not None and step.task.entry.memory is not None
        need = plan.memory_of(task, self.store, before)
        if stated and need > self.pool.memory:
            return self.end(Outcome(task, "failed", step.key, reason=_too_large(need, self.pool.memory), exit_code=3))
        need = min(need, self.pool.memory)  # an estimate refuses nothing: it makes a task run alone
        # A second task of the same key waits for the first, and finds its result.
        if step.key in self.keys.values() or not self.pool.takes(task, need):
            return False
        job = {
            "store": str(self.store.path),
            "stage": task.stage,
            "slot": task.slot,
            "key": step.key,
            "inputs": step.inputs,
            "recipe": dataclasses.asdict(task.recipe),
            "gpu": task.host,
            "part": task.part,
            "before": dict(before),
            "cwd": os.getcwd(),
        }
        self.watch(task, None)
        future = self.pool.submit(job, task, need)
        self.running[future], self.keys[future] = task, str(step.key)
        return True

    def collect(self) -> None:
        """Wait until a task ends."""
        ended, _ = concurrent.futures.wait(self.running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in ended:
            task, key = self.running.pop(future), self.keys.pop(future)
            found = self.pool.result(future)
            error, code = found.get("error", "") or found.get("repaired", ""), found.get("exit_code", 0)
            self.end(Outcome(task, found["state"], key, found.get("digest"), error, code, found["seconds"]))


def _finished(step: Step, store: Store) -> Outcome:
    record = store.record(str(step.key))
    if store.slot(step.task.slot) != {"slot": step.task.slot, "key": step.key}:
        store.set_slot(step.task.slot, {"key": step.key})
    return Outcome(step.task, "cached", step.key, record["digest"])


def _too_large(need: int, most: int) -> str:
    return (
        f"it needs {need / GB:.1f} GB of memory and this machine has {most / GB:.1f} GB; use a larger machine, or correct the "
        'numbers: [[override]] memory = "..." for the need, --memory for the machine'
    )


def worst_exit_code(codes: Iterable[int]) -> int:
    """The exit code of a whole fleet: a bug (4) before a wrong model (1), bad input (2) and something missing (3)."""
    found = set(codes)
    return next((code for code in (4, 1, 2, 3) if code in found), 0)
