"""The best few: compiled and timed for themselves, trained on, and the best of them chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..core import CheckFailed, Progress
from ..distill import Net
from . import engines
from .cost import Cost
from .engines import Bench
from .request import Budget, Request
from .space import Candidate, Space
from .supernet import cut_out
from .table import Table, stacks
from .training import Room, finish
from .trials import Starts, Trial

ROUNDS = 3  # of engines, when those before were over the budget


@dataclasses.dataclass(frozen=True)
class Measured:
    """A trial with what its own engine costs. Its seconds are those at the table's pace: by its ratio to the table's reference,
    timed beside it. `drift`: the reference's time then, over that in the table."""

    trial: Trial
    cost: Cost
    drift: float

    def error(self, budget: Budget) -> float:
        """By how much the engine costs more than the table says, as a share."""
        return budget.of(self.cost) / budget.of(self.trial.cost) - 1


@dataclasses.dataclass
class Finalist:
    """A candidate as a net of its own, and what its training did."""

    measured: Measured
    net: Net
    training: dict[str, Any]

    @property
    def value(self) -> float:
        return float(self.training["after"])


def measured(net: Net, trials: Sequence[Trial], space: Space, table: Table, bench: Bench) -> list[Measured]:
    """Compile the candidates of some trials and time them in turns, with the reference of the table beside them."""
    built = {at: engines.made(cut_out(net, each.candidate), (each.candidate.precision,), bench) for at, each in enumerate(trials)}
    made = [built[at][each.candidate.precision] for at, each in enumerate(trials)]
    if not bench.times:
        return [Measured(trial, each.cost, float("nan")) for trial, each in zip(trials, made, strict=True)]
    beside = engines.made(cut_out(net, table_stack(space)), space.precisions[:1], bench)[space.precisions[0]].runner
    runners = {str(at): each.runner for at, each in enumerate(made) if each.runner is not None}
    assert beside is not None, "made() opens sessions that are timed"
    taken = engines.seconds({**runners, "reference": beside}, net, bench, lambda done, total: None)
    reference = taken["reference"]
    drift = float(np.median(reference)) / table.reference
    found = []
    for at, (trial, each) in enumerate(zip(trials, made, strict=True)):
        ratio = float(np.median(taken[str(at)] / reference))
        found.append(Measured(trial, dataclasses.replace(each.cost, seconds=ratio * table.reference), drift))
    return found


def table_stack(space: Space) -> Candidate:
    """What the table's reference is."""
    return next(iter(stacks(space).values()))


def choose(
    net: Net, trials: Sequence[Trial], space: Space, table: Table, budget: Budget, bench: Bench, request: Request, log: Progress
) -> tuple[list[Measured], list[Measured]]:
    """(those whose engines are within the budget, best first; those that the table let pass and that are not).

    Raises CheckFailed where none is.
    """
    waiting = _best(trials)
    kept: list[Measured] = []
    over: list[Measured] = []
    with log.stage("engines of the best") as advance:
        for number in range(ROUNDS):
            wanted = [each for _, each in zip(range(request.finalists - len(kept)), waiting, strict=False)]
            if not wanted:
                break
            for each in measured(net, wanted, space, table, bench):
                (kept if budget.holds(each.cost) else over).append(each)
            advance(number + 1, ROUNDS)
    for each in over:
        log.note(
            f"trial {each.trial.number} is over the budget in its engine: {budget.shown(budget.of(each.cost))}, by the table "
            f"{budget.shown(budget.of(each.trial.cost))}"
        )
    if not kept:
        raise CheckFailed(
            f"no engine of the {len(over)} best trials is within --{budget.kind} {budget.text}, though the table said so (see "
            "the notes): the machine may have been busy with something else. Try again, or give a limit a little higher"
        )
    return kept, over


def _best(trials: Sequence[Trial]) -> Iterator[Trial]:
    """Trials within the budget, each candidate once: the best of each set of layers first, then the others.

    The network ranks candidates of the same layers better than it can tell how far two of them will come by themselves.
    """
    ordered = sorted((each for each in trials if each.within), key=lambda trial: (-trial.quality, trial.number))
    once = list({each.candidate: each for each in reversed(ordered)}.values())[::-1]
    first = list({(each.candidate.layers, each.candidate.precision): each for each in reversed(once)}.values())[::-1]
    first.sort(key=once.index)
    yield from first
    yield from (each for each in once if each not in first)


def trained(nets: Starts, chosen: Sequence[Measured], room: Room, request: Request, log: Progress) -> list[Finalist]:
    """Each of the best as a net of its own, trained on; the best of them first.

    Successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016,
    section 3): all of them train for a part of the steps, the better half for as many again, and so on to one.
    """
    found = [Finalist(each, cut_out(nets[each.trial.start], each.trial.candidate), {}) for each in chosen]
    for turn, (count, steps) in enumerate(turns(len(found), request.finish)):
        for each in found[:count]:
            candidate = each.measured.trial.candidate
            log.say(f"trial {each.measured.trial.number}: {candidate}: {steps} steps")
            told = finish(each.net, room, candidate, request.target, steps, log, turn=turn)
            each.training = _joined(each.training, told)
        found = sorted(found[:count], key=lambda each: -each.value) + found[count:]
    for each in found:
        if request.finish and not each.training["kept"]:
            log.note(f"the training of trial {each.measured.trial.number} was thrown away: it made it no better")
    # Who was left behind may have been better than who went on and became worse: that is seen here.
    return sorted(found, key=lambda each: -each.value)


def turns(count: int, steps: int) -> list[tuple[int, int]]:
    """(how many train, for how many steps) of each turn: `steps` in all for who is left, half of them in the last turn."""
    counts = [count]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    if not steps:
        return [(count, 0)]
    early = steps // 2 // max(1, len(counts) - 1) if len(counts) > 1 else 0
    last = steps - early * (len(counts) - 1)
    return [(each, early) for each in counts[:-1] if early] + [(counts[-1], last)]


def _joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The facts of several turns as those of one."""
    turned = [*before.get("turns", ()), now["training"]] if now["training"] else []
    told = {"before": before.get("before", now["before"]), "after": max(now["before"], now["after"])}
    return {**told, "kept": before.get("kept", False) or now["kept"], "turns": turned}
