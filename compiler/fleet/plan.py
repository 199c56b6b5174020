"""What a fleet consists of, what of it is finished, and why the rest is not: one step for each stage of each model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .. import precision as precisions
from .. import targets
from ..errors import BertcError
from ..recipe import Recipe
from ..targets import TargetSpec
from . import gpus, keys
from .config import Entry, Fleet
from .store import Store

GB = 10**9
BASE = {"export": 1.2 * GB, "fuse": 0.7 * GB, "quantise": 0.9 * GB, "build": 0.7 * GB}  # what the libraries of a stage take
TIMES = 6  # memory of a stage beyond that, in sizes of the model's weights: benchmarks/bench_build.py
UNKNOWN = 0.3 * GB  # of a model whose weights a factory makes


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of one model. `needs` are the slots of stages before it, by stage."""

    stage: str
    slot: str
    recipe: Recipe
    spec: TargetSpec
    needs: Mapping[str, str]
    entry: Entry | None = None

    @property
    def cores(self) -> int:
        return self.entry.cores if self.entry else 1

    @property
    def host(self) -> str | None:
        return self.entry.host if self.entry else None


@dataclasses.dataclass(frozen=True)
class Step:
    """A task and its state.

    cached: finished. new: never made. stale: made once, of other inputs; `reasons` say which. failed: tried with these very
    inputs. waits: what comes before it is not finished, so its inputs are not known (it may still turn out to be cached).
    elsewhere: only a host with that GPU can make it. `seconds` is what it took last time, None where it never ran. A source that
    cannot be read is failed, with no key and the exit code of its error.
    """

    task: Task
    state: str
    key: str | None
    inputs: Mapping[str, Any] | None
    reasons: tuple[str, ...] = ()
    seconds: float | None = None
    exit_code: int = 0

    @property
    def todo(self) -> bool:
        return self.state in ("new", "stale", "failed", "waits")


def tasks(fleet: Fleet) -> list[Task]:
    """Exports, fusions, quantised graphs, then builds: a task stands behind what it needs."""
    models = list(dict.fromkeys(entry.model for entry in fleet.entries))
    fusing = {e.model for e in fleet.entries if targets.get(e.spec.name).FUSES}
    null, found = targets.parse_spec("null"), []
    for stage in ("export", "fuse"):
        for model in models if stage == "export" else [m for m in models if m in fusing]:
            recipe = dataclasses.replace(fleet.models[model], targets=("null",), precision="fp32")
            needs = {"export": f"{model}/export"} if stage == "fuse" else {}
            found.append(Task(stage, f"{model}/{stage}", recipe, null, needs))
    quantised: dict[str, Task] = {}
    builds = [_build(entry, quantised) for entry in fleet.entries]
    return [*found, *quantised.values(), *builds]


def _build(entry: Entry, quantised: dict[str, Task]) -> Task:
    """The last stage of an entry; a stage that quantises for it joins `quantised`, unless one there does so for it, too."""
    needs = {"export": f"{entry.model}/export"}
    if targets.get(entry.spec.name).FUSES:
        needs["fuse"] = f"{entry.model}/fuse"
    if entry.precision in precisions.QUANTISED:
        same = json.dumps([entry.model, entry.recipe.data, keys.options("quantise", entry.recipe, entry.spec)], sort_keys=True)
        slot = f"{entry.model}/quantise-{entry.plan}"
        made = quantised.setdefault(same, Task("quantise", slot, entry.recipe, entry.spec, dict(needs)))
        needs["quantise"] = made.slot
    return Task("build", entry.name, entry.recipe, entry.spec, needs, entry)


def plan(fleet: Fleet, store: Store) -> list[Step]:
    """The state of every task."""
    steps: dict[str, Step] = {}
    here = gpus.here()
    for task in tasks(fleet):
        steps[task.slot] = step(task, store, digests(task, steps, store), here)
    return list(steps.values())


def digests(task: Task, steps: Mapping[str, Step], store: Store) -> dict[str, str] | None:
    """What the stages before it made, None where one of them is not finished."""
    before = {stage: steps[slot] for stage, slot in task.needs.items()}
    if any(each.state != "cached" for each in before.values()):
        return None
    return {stage: store.record(str(each.key))["digest"] for stage, each in before.items()}


def step(task: Task, store: Store, upstream: Mapping[str, str] | None, here: tuple[str, ...]) -> Step:
    """The state of one task, with the digests of what it takes."""
    known = store.slot(task.slot)
    last = store.record(known["key"]) if "key" in known and store.has(known["key"]) else None
    seconds = last["seconds"] if last else None
    away = task.host is not None and task.host not in here
    reason = f"needs a host with {task.host}; this one has {', '.join(here) or 'no NVIDIA GPU'}"
    try:
        document = keys.inputs(task.stage, task.recipe, task.spec, upstream or {}, host=task.host, hashed=store.sum_of)
    except BertcError as error:
        return Step(task, "failed", None, None, (str(error),), seconds, error.exit_code)
    if upstream is None:
        changed = keys.changes(last["inputs"] | {"after": {}}, document) if last else []
        waiting = f"after {', '.join(task.needs.values())}"
        if away:
            return Step(task, "elsewhere", None, None, (reason, *changed), seconds)
        return Step(task, "waits", None, None, (*changed, waiting), seconds)
    key = keys.key_of(document)
    if store.has(key):
        return Step(task, "cached", key, document, (), store.record(key)["seconds"])
    if away:
        return Step(task, "elsewhere", key, document, (reason,), seconds)
    failure = known.get("failure", {})
    if failure.get("key") == key:
        return Step(task, "failed", key, document, (f"failed last time: {failure['error'].splitlines()[0]}",), seconds)
    if last is None:
        gone = "key" in known
        return Step(task, "new", key, document, ("its result is gone from the store" if gone else "never made",), None)
    return Step(task, "stale", key, document, tuple(keys.changes(last["inputs"], document)) or ("its inputs changed",), seconds)


def memory_of(task: Task, store: Store, before: Mapping[str, str]) -> int:
    """Bytes that a task needs: as the fleet file says, else as it took last time, else by the size of the model's files.

    `before` are the keys of the stages before it.
    """
    if task.entry and task.entry.memory is not None:
        return task.entry.memory
    known = store.slot(task.slot)
    peak = store.record(known["key"])["peak_bytes"] if "key" in known and store.has(known["key"]) else 0
    if peak:
        return int(peak * 1.1)
    if "export" in before:
        weights = store.record(before["export"])["files"]["graph.onnx"]["bytes"]
    else:
        weights = sum(path.stat().st_size for path in keys.source_paths(task.recipe)[0].values())
    return int(BASE[task.stage] + TIMES * (weights or UNKNOWN))
