"""Which of the tasks that could begin begins first: the one with the longest way to the end of the fleet behind it.

With as many cores as tasks it would not matter; with fewer, a large model whose export began last is what everybody waits for in
the end. Priority is the longest chain of seconds from a task to the end (the upward rank of Topcuoglu, Hariri and Wu, IEEE TPDS
13(3), 2002). Seconds are those of the last time, in this store; of what was never made, a guess by stage and size of weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from .. import precision as precisions
from ..core import BertcError
from . import plan
from .plan import Task
from .store import Store

# Of a model of six layers (87 MiB), and the size of weights that doubles them: benchmarks/bench_fleet.py.
SECONDS = {"export": 10.0, "fuse": 4.0, "calibrate": 5.0, "quantise": 15.0, "build": 4.0}
QUANTISED = 3.0  # times: the engine of the base precision is built beside it, and rows of data are judged
DOUBLES = 200e6  # bytes


def longest_path_first(tasks: Sequence[Task], store: Store) -> list[Task]:
    """The tasks, the highest priority first; equals stay in their order."""
    after: dict[str, list[Task]] = {}
    for task in tasks:
        for slot in task.needs.values():
            after.setdefault(slot, []).append(task)
    spent = {task.slot: expected_seconds(task, store) for task in tasks}

    @functools.cache
    def rank(slot: str) -> float:
        return spent[slot] + max((rank(task.slot) for task in after.get(slot, ())), default=0.0)

    return sorted(tasks, key=lambda task: -rank(task.slot))


def expected_seconds(task: Task, store: Store) -> float:
    """What a task took last time, or may take."""
    known = store.slot(task.slot)
    if last := store.known_record(known.get("key")):
        return float(last["seconds"])
    times = QUANTISED if task.stage == "build" and task.recipe.precision in precisions.QUANTISED else 1.0
    try:
        weights = plan.source_bytes(task.recipe)
    except BertcError:
        weights = 0  # a source that is not there: its task fails, and says so
    return SECONDS[task.stage] * times * (1 + weights / DOUBLES)
