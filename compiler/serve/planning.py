"""Which policy serves a traffic within a limit: simulations of all of them over rates, and the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Artifact
from . import traffic
from .config import ModelConfig, ServingConfig, write_config
from .cost import CostModel
from .planner import Policy
from .simulate import Load, Simulated, simulate

REQUESTS = 2000  # of one simulation
RATES = (0.5, 0.75, 1.0, 1.25, 1.5)
QUEUE = 512
KEPT = 0.98  # of the requests that must be answered, and of the rate that must be kept up
BUDGETS = (128, 256, 512, 1024)
WAIT = 0.005
STEPS = 7  # of the search for the highest rate


@dataclasses.dataclass(frozen=True)
class Tried:
    """One policy: what it did at each rate, and the highest rate that it serves within the limit."""

    policy: Policy
    runs: tuple[tuple[float, Simulated], ...]
    capacity: float

    @property
    def name(self) -> str:
        """`tokens 256`, `count 8`, `cost`."""
        number = {"tokens": self.policy.budget, "count": self.policy.max_rows}.get(self.policy.name)
        return self.policy.name + (f" {number}" if number else "")


@dataclasses.dataclass(frozen=True)
class ServingPlan:
    """All that was tried, the best of it, and whether it serves `rate` within `p99` seconds."""

    tried: tuple[Tried, ...]
    best: Tried
    rate: float
    p99: float
    cost: CostModel
    wanted: Simulated

    @property
    def holds(self) -> bool:
        """Whether the best policy serves the rate within the limit."""
        return self.best.capacity >= self.rate

    @property
    def why(self) -> str:
        """The choice in a sentence."""
        none = next(each for each in self.tried if each.policy.name == "none")
        gain = self.best.capacity / none.capacity if none.capacity else float("inf")
        against = "as much as" if self.best is none else f"{gain:.2f} times"
        return (
            f"{self.best.name}: up to {self.best.capacity:.0f} requests a second within {self.p99 * 1e3:g} ms on "
            f"{self.cost.workers} x {self.cost.threads} threads, {against} without batching"
        )

    @property
    def advice(self) -> str:
        """What to change where no policy holds."""
        if not self.best.capacity:
            return "one request alone takes longer; a smaller or packed model, more --threads, or a longer --p99"
        more = int(np.ceil(self.rate / self.best.capacity))
        return f"{self.best.name} serves {self.best.capacity:.0f}: {more} such machines, int8 or --packed, or a longer --p99"

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "p99_ms": self.p99 * 1e3,
            "workers": self.cost.workers,
            "threads": self.cost.threads,
            "holds": self.holds,
            "chosen": self.best.name,
            "policies": {
                each.name: {
                    "capacity": each.capacity,
                    "rates": [{"rate": rate} | run.to_json() for rate, run in each.runs],
                }
                for each in self.tried
            },
        }


def read_lengths(path: Path, found: Artifact) -> tuple[list[list[int]], tuple[str, ...]]:
    """(the lengths of each request's rows, in order, once for each time it came, up to REQUESTS; notes)."""
    model = traffic.traffic_model(str(found.path))
    requests, notes = traffic.read_requests(path, model.longest, model.encode)
    weights = np.array([count for _, count in requests], np.float64)
    if len(requests) > REQUESTS or weights.max() > 1:
        chosen = np.random.default_rng(0).choice(len(requests), REQUESTS, p=weights / weights.sum())
        return [list(requests[at][0]) for at in chosen], notes
    times = -(-REQUESTS // len(requests))
    order = np.random.default_rng(0).permutation(len(requests) * times)[:REQUESTS] % len(requests)
    return [list(requests[at][0]) for at in order], notes


def candidates(p99: float) -> list[Policy]:
    """The policies that are tried; `p99` seconds is what the cost policy aims at."""
    return [
        Policy("none"),
        *(Policy("count", max_rows=rows, max_wait=WAIT) for rows in (4, 8, 32)),
        *(Policy("tokens", budget=budget) for budget in BUDGETS),
        Policy("cost", target=p99),
    ]


def plan(lengths: Sequence[Sequence[int]], cost: CostModel, rate: float, p99: float, seed: int = 0) -> ServingPlan:
    """Simulate every policy at fractions of `rate` (requests a second) and find the highest rate within `p99` seconds."""
    tried = []
    for policy in candidates(p99):
        runs = tuple((rate * share, _run(lengths, cost, policy, rate * share, p99, seed)) for share in RATES)
        tried.append(Tried(policy, runs, capacity(lengths, cost, policy, p99, seed)))
    # The best; among equals (within the noise of a simulation) the simpler one, which stands first.
    top = max(each.capacity for each in tried)
    best = next(each for each in tried if each.capacity >= 0.98 * top)
    wanted = next(run for at, run in best.runs if at == rate)
    return ServingPlan(tuple(tried), best, rate, p99, cost, wanted)


def capacity(lengths: Sequence[Sequence[int]], cost: CostModel, policy: Policy, p99: float, seed: int = 0) -> float:
    """The highest rate of requests whose p99 is within the limit, to about 1 %; 0 where one alone is too slow."""
    alone = np.mean([sum(cost.one([n]) for n in each) for each in lengths])
    low, high = 0.0, 8 * cost.workers / float(alone)
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = _run(lengths, cost, policy, middle, p99, seed)
        low, high = (middle, high) if _within(found, middle, p99) else (low, middle)
    return low


def _run(lengths: Sequence[Sequence[int]], cost: CostModel, policy: Policy, rate: float, p99: float, seed: int) -> Simulated:
    return simulate(Load(lengths, rate, seed=seed), cost, policy, cost.workers, deadline=20 * p99, queue=QUEUE)


def _within(found: Simulated, rate: float, p99: float) -> bool:
    answered = len(found.latency) / max(len(found.latency) + found.late + found.refused, 1)
    return answered >= KEPT and found.percentile(99) <= p99


def write(plan: ServingPlan, artifact: Path, path: Path) -> None:
    """serving.toml of the choice."""
    chosen = plan.best.policy
    made = ServingConfig(
        workers=plan.cost.workers,
        threads=plan.cost.threads,
        policy=chosen.name,
        max_rows=chosen.max_rows,
        max_wait_ms=chosen.max_wait * 1e3,
        budget=chosen.budget,
        target_ms=plan.p99 * 1e3,
        models={artifact.resolve().name: ModelConfig(str(artifact))},
    )
    write_config(made, path)
