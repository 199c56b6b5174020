"""What a fleet consists of, what of it is finished, and why the rest is not: one step for each stage of each model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .. import precision as precisions
from .. import targets
from ..core import BertcError, gpu_models
from ..recipe import Recipe
from ..targets import TargetSpec
from . import keys
from .config import Entry, Fleet
from .store import Store
from .travelled import shown

GB = 10**9
# What the libraries of a stage take.
LIBRARY_BYTES = {"export": 1.2 * GB, "fuse": 0.7 * GB, "calibrate": 0.9 * GB, "quantise": 0.9 * GB, "build": 0.7 * GB}
WEIGHT_MULTIPLE = 6  # memory of a stage beyond that, in sizes of the model's weights: benchmarks/bench_build.py
UNKNOWN_WEIGHT_BYTES = 0.3 * GB  # of a model whose weights a factory makes


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of one model. `needs` are the slots of stages before it, by stage. `part`: I/N of one that is split."""

    stage: str
    slot: str
    recipe: Recipe
    spec: TargetSpec
    needs: Mapping[str, str]
    entry: Entry | None = None
    part: str | None = None

    @property
    def cores(self) -> int:
        return self.entry.cores if self.entry else 1

    @property
    def host(self) -> str | None:
        return self.entry.host if self.entry else None


@dataclasses.dataclass(frozen=True)
class Step:
    """A task and its state.

    cached: finished. new: never made. stale: made once, of other inputs, or damaged since; `reasons` say which. failed: tried
    with these very inputs. pending: what comes before it is not finished, so its inputs are not known (it may still turn out
    to be cached). other-host: only a host with that GPU can make it. `seconds` is what it took last time, None where it never
    ran. A source that cannot be read is failed, with no key and the exit code of its error.
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
        return self.state in ("new", "stale", "failed", "pending")


def state_words(state: str) -> str:
    """A state as a person reads it."""
    return "needs another host" if state == "other-host" else state


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
    shared: dict[str, Task] = {}  # of all entries, so that a stage has one name whichever of them are chosen
    builds = {entry.name: _build(entry, fleet.shards, shared) for entry in fleet.every or fleet.entries}
    chosen = [builds[entry.name] for entry in fleet.entries]
    wanted = {slot for task in chosen for slot in task.needs.values()}
    wanted |= {slot for task in shared.values() if task.slot in wanted for slot in task.needs.values()}
    between = sorted((t for t in shared.values() if t.slot in wanted), key=lambda task: keys.STAGES.index(task.stage))
    return [*found, *between, *chosen]


def _build(entry: Entry, shards: int, shared: dict[str, Task]) -> Task:
    """The last stage of an entry; stages that quantise for it join `shared`, unless those there do the same."""
    needs = {"export": f"{entry.model}/export"}
    if targets.get(entry.spec.name).FUSES:
        needs["fuse"] = f"{entry.model}/fuse"
    if entry.precision not in precisions.QUANTISED:
        return Task("build", entry.name, entry.recipe, entry.spec, needs, entry)
    parts = (
        [f"{number + 1}/{shards}" for number in range(shards)] if shards > 1 and entry.precision in precisions.CALIBRATED else []
    )
    tasks = [_shared(entry, "calibrate", needs, shared, part) for part in parts]
    before = needs | {f"calibrate {task.part}": task.slot for task in tasks}
    needs |= {"quantise": _shared(entry, "quantise", before, shared).slot}
    return Task("build", entry.name, entry.recipe, entry.spec, needs, entry)


def _shared(entry: Entry, stage: str, needs: Mapping[str, str], shared: dict[str, Task], part: str | None = None) -> Task:
    """The task that does a stage for an entry, and for all entries of which the options of that stage are the same."""
    same = json.dumps(
        [stage, part, entry.model, entry.recipe.data, keys.options(stage, entry.recipe, entry.spec)], sort_keys=True
    )
    slot = f"{entry.model}/{stage}-{entry.plan}" + (f"-{part.replace('/', 'of')}" if part else "")
    return shared.setdefault(same, Task(stage, slot, entry.recipe, entry.spec, dict(needs), part=part))


def plan_fleet(fleet: Fleet, store: Store) -> list[Step]:
    """The state of every task."""
    steps: dict[str, Step] = {}
    here = gpu_models.local_gpus()
    for task in tasks(fleet):
        steps[task.slot] = plan_task(task, store, upstream_digests(task, steps, store), here)
    return list(steps.values())


def upstream_digests(task: Task, steps: Mapping[str, Step], store: Store) -> dict[str, str] | None:
    """What the stages before it made, None where one of them is not finished."""
    before = {stage: steps[slot] for stage, slot in task.needs.items()}
    if any(each.state != "cached" for each in before.values()):
        return None
    return {stage: store.record(str(each.key))["digest"] for stage, each in before.items()}


def plan_task(task: Task, store: Store, upstream: Mapping[str, str] | None, here: tuple[str, ...]) -> Step:
    """The state of one task, with the digests of what it takes."""
    known = store.slot(task.slot)
    last = store.known_record(known.get("key"))
    seconds = last["seconds"] if last else None
    other_host = task.host is not None and task.host not in here
    reason = f"no {task.host} here: this machine has {', '.join(here) or 'no NVIDIA GPU'}"
    try:
        document = inputs(task, upstream or {}, store)
    except BertcError as error:
        return Step(task, "failed", None, None, (str(error),), seconds, error.exit_code)
    if upstream is None:
        changed = keys.changes(last["inputs"] | {"after": {}}, document) if last else []
        waiting = f"after {', '.join(task.needs.values())}"
        if other_host:
            return Step(task, "other-host", None, None, (reason, *changed), seconds)
        return Step(task, "pending", None, None, (*changed, waiting), seconds)
    key = keys.key_of(document)
    damage = store.damage(key) if store.has(key) else None
    if store.has(key) and damage is None:
        return Step(task, "cached", key, document, (), store.record(key)["seconds"])
    damaged = (f"damaged in the store: {damage}",) if damage else ()
    if other_host:
        return Step(task, "other-host", key, document, (reason, *damaged), seconds)
    if damaged:
        return Step(task, "stale", key, document, damaged, seconds)
    failure = known.get("failure", {})
    if failure.get("key") == key:
        return Step(task, "failed", key, document, (f"failed last time: {first_line(failure.get('error', ''))}",), seconds)
    if last is None:
        gone = "key" in known
        return Step(task, "new", key, document, ("removed from the store" if gone else "never made",), None)
    return Step(task, "stale", key, document, tuple(keys.changes(last["inputs"], document)) or ("its inputs changed",), seconds)


def first_line(text: str) -> str:
    """Of an error that a store remembers."""
    return shown(text.strip().partition("\n")[0]) or "the store does not say why"


def inputs(task: Task, upstream: Mapping[str, str], store: Store) -> dict[str, Any]:
    """All that decides what a task makes: see `keys.inputs`."""
    return keys.inputs(task.stage, task.recipe, task.spec, upstream, host=task.host, hashed=store.sum_of, part=task.part)


def memory_of(task: Task, store: Store, before: Mapping[str, str]) -> int:
    """Bytes that a task needs: as the fleet file says, else as it took last time, else by the size of the model's files.

    `before` are the keys of the stages before it.
    """
    if task.entry and task.entry.memory is not None:
        return task.entry.memory
    known = store.slot(task.slot)
    peak = (store.known_record(known.get("key")) or {}).get("peak_bytes", 0)
    if peak:
        return int(peak * 1.1)
    graph = store.record(before["export"])["files"]["graph.onnx"] if "export" in before else None
    return int(LIBRARY_BYTES[task.stage] + WEIGHT_MULTIPLE * (graph["bytes"] if graph else source_bytes(task.recipe)))


def source_bytes(recipe: Recipe) -> int:
    """Of the files of a source; a guess for a factory, whose weights nobody knows before it is called."""
    return sum(path.stat().st_size for path in keys.source_paths(recipe)[0].values()) or int(UNKNOWN_WEIGHT_BYTES)
