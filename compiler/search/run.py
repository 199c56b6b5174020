"""bertc search, in order: open, sort, cost, train the network, try candidates, train the best on, judge, write."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from ..artifact import staging
from ..core import ArtifactError, InputError, Progress, disk_errors, read_json, what_is_wrong, write_json
from ..distill import checkpoints, copied
from . import document, finalists, table, training, trials
from .document import Searched
from .engines import Bench
from .opened import Opened, open_all
from .request import Budget, Request, check
from .space import Candidate, Space
from .table import Table
from .training import Room
from .writing import write

COSTS = "costs.json"


@dataclasses.dataclass(frozen=True)
class Found:
    """The chosen student on disk, and what its search.json says."""

    path: Path
    document: dict[str, Any]


def search(
    request: Request, out: Path, *, force: bool = False, resume: bool = False, progress: Progress | None = None
) -> Found:  # fmt: skip
    """Search a student and write it to `out`. What takes long, the table of costs and the trained network, lies in a folder
    beside it meanwhile, `OUT.search`, from which `resume` goes on.

    Raises InputError for a budget that no student keeps, or that the model keeps as it is; Missing without Optuna; CheckFailed
    where no engine keeps the budget. `out` is then as it was before.
    """
    log, began = progress or Progress(), time.monotonic()
    check(request)
    trials.require_optuna()
    folder = out.with_name(out.name + ".search")
    _check_folder(folder, force, resume)
    with staging(out, force) as stage, _told(folder, resume):
        opened = open_all(request, log)
        found, room = _searched(opened, request, folder, resume, log)
        room.teachers.autocast = contextlib.nullcontext  # judged in float32
        chosen = found.finalists[0]
        with log.stage("judge"):
            quality = document.judged(opened, chosen, request)
        made = document.made(opened, found, quality, request, log, time.monotonic() - began)
        write(chosen.net, stage, made, request, log)
    shutil.rmtree(folder, ignore_errors=True)
    return Found(out, made)


def _check_folder(folder: Path, force: bool, resume: bool) -> None:
    there = (folder / COSTS).is_file()
    if resume and not there:
        raise ArtifactError(f"--resume: there is no {folder / COSTS}; leave --resume out to begin")
    if there and not resume and not force:
        raise ArtifactError(
            f"{folder} is of a search that did not end: go on with it (--resume), or begin again (--force)"
        )  # fmt: skip
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _told(folder: Path, resume: bool) -> Iterator[None]:
    """Ctrl-C says what is kept; a limit that is refused leaves nothing that the next try would stumble over."""
    try:
        yield
    except InputError:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except KeyboardInterrupt as error:
        if error.args or not (folder / COSTS).is_file():
            raise
        network = " and the trained network" if (folder / checkpoints.NAME).is_file() else ""
        raise KeyboardInterrupt(
            f"nothing was written but {folder}: the table of costs{network}. Go on with the same command and --resume"
        ) from error


def _searched(opened: Opened, request: Request, folder: Path, resume: bool, log: Progress) -> tuple[Searched, Room]:
    net, space, bench, budget = opened.net, opened.space, opened.bench, request.budget
    costs = _costs(opened, folder, resume, log)
    require_possible(space, costs, budget, bench)
    room = training.room_of(opened.original, net, opened.teachers, opened.texts, request, log)
    facts = {"space": space.to_json(), "costs": costs.state(), "budget": [budget.kind, budget.limit]}
    again = resume and (folder / checkpoints.NAME).is_file()
    nets = {training.TRAINED: net, training.MODEL: copied(net)}
    learned = training.train_supernet(net, room, space, lambda each: spent(each, space, costs, budget), facts, folder, again, log)
    tried = trials.run(space, costs, budget, lambda each: training.better(nets, room, each, request.target), request, log)
    kept, _ = finalists.choose(net, tried, space, costs, budget, bench, request, log)
    return Searched(costs, learned, tried, finalists.trained(nets, kept, room, request, log)), room


class Costs(TypedDict):
    """What the layers cost, and of which model and space."""

    of: dict[str, Any]
    costs: dict[str, Any]


def _costs(opened: Opened, folder: Path, resume: bool, log: Progress) -> Table:
    """The table, measured now or by the search that goes on: with other times it would have had other trials."""
    facts = {"model": opened.original.origin.sha256, "bench": opened.bench.facts(), "space": opened.space.to_json()}
    facts = json.loads(json.dumps(facts))
    path = folder / COSTS
    if resume:
        state = read_json(path, Costs, advice="begin again with --force", error=ArtifactError)
        if state["of"] != facts:
            raise ArtifactError(
                f"{path} is of another model, shape, target or space than this command: give the same, or --force to begin again"
            )
        log.say(f"costs of layers as in {path}")
        try:
            return Table.of_state(state["costs"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} is damaged: {what_is_wrong(error)}; begin again with --force") from error
    made = table.measure(opened.net, opened.space, opened.bench, log)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"of": facts, "costs": made.state()})
    return made


def spent(candidate: Candidate, space: Space, costs: Table, budget: Budget) -> float:
    """The share of the budget that a candidate uses, in the precision in which it uses least: all have the same weights."""
    modes = (dataclasses.replace(candidate, precision=each) for each in space.precisions)
    return min(budget.of(costs.of(each)) for each in modes) / budget.limit


def require_possible(space: Space, costs: Table, budget: Budget, bench: Bench) -> None:
    """InputError for a budget below all candidates, or above the model as it is."""
    where = f" at {bench.facts()['shape']} on {bench.threads} threads" if budget.kind == "latency" else ""
    least = min((space.smallest(each) for each in space.precisions), key=lambda each: budget.of(costs.of(each)))
    value = budget.of(costs.of(least))
    if value > budget.limit:
        raise InputError(
            f"--{budget.kind} {budget.text}: the smallest student, {least}, is {budget.shown(value)}{where}; give "
            f"{budget.option(value)} or more"
        )
    whole = space.largest()
    value = budget.of(costs.of(whole))
    if value <= budget.limit:
        raise InputError(
            f"--{budget.kind} {budget.text}: nothing to search, the model itself is {budget.shown(value)}{where} in "
            f"{whole.precision}; build it as it is, or give a smaller limit"
        )
