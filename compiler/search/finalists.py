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
from .trials import Trial

ROUNDS = 3  # of engines, when those before were over the budget


@dataclasses.dataclass(frozen=True)
class Measured:
    """A trial with what its own engine costs. `drift`: the reference's time then, over that when the table was made."""

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
    drift = float(np.median(taken["reference"])) / table.reference
    return [
        Measured(trial, dataclasses.replace(each.cost, seconds=float(np.median(taken[str(at)]))), drift)
        for at, (trial, each) in enumerate(zip(trials, made, strict=True))
    ]


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
    """Trials within the budget, the best first, each candidate once."""
    seen: set[Candidate] = set()
    for each in sorted(trials, key=lambda trial: (-trial.quality, trial.number)):
        if each.within and each.candidate not in seen:
            seen.add(each.candidate)
            yield each


def trained(net: Net, chosen: Sequence[Measured], room: Room, request: Request, log: Progress) -> list[Finalist]:
    """Each of the best as a net of its own, trained on; the best of them first."""
    found = []
    for each in chosen:
        candidate = each.trial.candidate
        own = cut_out(net, candidate)
        log.say(f"trial {each.trial.number}: {candidate}")
        found.append(Finalist(each, own, finish(own, room, candidate, request.target, request.finish, log)))
    for made in found:
        if request.finish and not made.training["kept"]:
            log.note(f"the training of trial {made.measured.trial.number} was thrown away: it made it no better")
    return sorted(found, key=lambda each: -max(each.training["before"], each.training["after"]))
