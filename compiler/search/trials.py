"""The trials: Optuna suggests candidates, each is judged in the trained network and costed from the table.

Two goals, quality and cost, and the budget as a constraint: a front comes out, not one point. Tree-structured Parzen estimators
for several goals: Ozaki et al., "Multiobjective Tree-Structured Parzen Estimator", 2022, section 4. (One reward of both, quality
x (latency / limit)^w, is that of Tan et al., "MnasNet", 2019, section 3.1: it needs a w.)
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import Missing, Progress
from ..distill import Net
from .cost import Cost
from .request import Budget, Request
from .space import Candidate, Space
from .table import Table

Starts = Mapping[str, Net]  # the networks that a candidate can be a part of, by name
Judged = tuple[float, str]  # a quality, and the network in which it is that good
HINTED = 0.4  # of the trials, at most, are students that one would try by hand


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate with its quality without training and its cost by the table. `within`: the budget holds. `start`: the network
    in which it is better, the one that was trained for all, or the model as it is: of some little is left out."""

    number: int
    candidate: Candidate
    quality: float
    cost: Cost
    within: bool
    hinted: bool
    start: str

    def to_json(self) -> dict[str, Any]:
        facts = {"number": self.number, "quality": self.quality, **self.cost.to_json()}
        return {**facts, "within": self.within, "hinted": self.hinted, "start": self.start, **self.candidate.to_json()}


def require_optuna() -> Any:
    """The module. Raises Missing without it: before any work is done."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise Missing(f"bertc search needs Optuna, and {error.name} is not installed: pip install 'bertc[search]'") from error
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise Missing(f"bertc search needs Optuna 5 or newer, here is {optuna.__version__}: pip install -U 'bertc[search]'")
    return optuna


def run(
    space: Space, table: Table, budget: Budget, judge: Callable[[Candidate], Judged], request: Request, log: Progress
) -> list[Trial]:
    """All trials, in their order. The same seed, table and qualities give the same ones; a candidate is judged once."""
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[Candidate, Judged] = {}
    trials: list[Trial] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=request.seed, n_startup_trials=max(10, request.trials // 5), multivariate=True)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        hints = hinted(space, table, budget, int(request.trials * HINTED))
        for each in hints:
            study.enqueue_trial(space.parameters(each))
        with log.stage("trials") as advance:
            for number in range(request.trials):
                trial = study.ask()
                candidate = space.suggested(trial)
                if candidate not in found:
                    found[candidate] = judge(candidate)
                quality, start = found[candidate]
                cost = table.of(candidate)
                trial.set_constraint("budget", budget.of(cost) / budget.limit - 1)
                study.tell(trial, (quality, budget.of(cost)))
                trials.append(Trial(number, candidate, quality, cost, budget.holds(cost), number < len(hints), start))
                advance(number + 1, request.trials)
    return trials


def hinted(space: Space, table: Table, budget: Budget, most: int) -> list[Candidate]:
    """Students that one would try by hand, of each precision in turns those nearest to the budget from below first."""

    def far(each: Candidate) -> tuple[bool, float]:
        over = budget.of(table.of(each)) / budget.limit - 1
        return over > 0, abs(over)

    ordered = sorted(dict.fromkeys(space.anchors()), key=far)
    by_precision = [[each for each in ordered if each.precision == mode] for mode in space.precisions]
    in_turns = itertools.chain.from_iterable(itertools.zip_longest(*by_precision))
    return [each for each in in_turns if each is not None][:most]


def front(trials: Sequence[Trial], budget: Budget) -> list[Trial]:
    """The trials that no other one beats in quality and cost, by cost; of equal ones the first."""
    found: list[Trial] = []
    for each in sorted(trials, key=lambda trial: (budget.of(trial.cost), -trial.quality, trial.number)):
        if not found or each.quality > found[-1].quality:
            found.append(each)
    return found
