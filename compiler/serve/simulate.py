"""A discrete-event simulation of a server: requests arrive, the planner decides, workers take as long as was measured.

The planner's functions are those of the server. Time is the simulation's own; nothing sleeps.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import planner
from .cost import CostModel
from .planner import Policy, Row

ARRIVE, DONE, WAKE = range(3)


@dataclasses.dataclass(frozen=True)
class Load:
    """What comes: the lengths of each request's rows, in the order they come.

    `rate` requests a second, Poisson; or `clients` that each send the next request when the one before is answered."""

    lengths: Sequence[Sequence[int]]
    rate: float | None = None
    clients: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What a server did: seconds [answered] of each answered request, and its counts."""

    latency: np.ndarray
    late: int
    refused: int
    seconds: float
    busy: float
    workers: int
    batches: int
    rows: int
    tokens: int
    computed: int

    @property
    def throughput(self) -> float:
        """Answered requests a second."""
        return len(self.latency) / self.seconds if self.seconds else 0.0

    @property
    def utilisation(self) -> float:
        """The share of the workers' time that they computed in."""
        return self.busy / (self.seconds * self.workers) if self.seconds else 0.0

    @property
    def waste(self) -> float:
        """The share of the computed tokens that is padding."""
        return 1 - self.tokens / self.computed if self.computed else 0.0

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the answered requests was answered; infinite where none was."""
        return float(np.percentile(self.latency, share)) if len(self.latency) else math.inf

    def to_json(self) -> dict[str, Any]:
        plain = {f"p{p}_ms": 1e3 * self.percentile(p) if len(self.latency) else None for p in (50, 90, 99)}
        return plain | {
            "throughput": self.throughput,
            "answered": len(self.latency),
            "late": self.late,
            "refused": self.refused,
            "rows_a_batch": self.rows / self.batches if self.batches else None,
            "padding": self.waste,
            "utilisation": self.utilisation,
        }


def simulate(
    load: Load, cost: CostModel, policy: Policy, workers: int, deadline: float = math.inf, queue: int = 1024
) -> Simulated:
    """Run the load through `workers` of one artifact. `deadline` seconds after its arrival a request is given up; more than
    `queue` waiting rows are refused."""
    return _Run(load, cost, policy, workers, deadline, queue).result()


class _Run:
    def __init__(self, load: Load, cost: CostModel, policy: Policy, workers: int, deadline: float, queue: int) -> None:
        self.cost, self.policy, self.workers = cost, policy, workers
        self.deadline, self.queue, self.closed = deadline, queue, not load.rate
        self.events: list[tuple[float, int, int, Any]] = []
        self.serial, self.keys = itertools.count(), itertools.count()
        self.requests = iter(load.lengths)
        self.waiting: list[Row] = []
        self.known: dict[tuple[int, int, int], float] = {}
        self.request_of: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self.came: dict[int, float] = {}
        self.latency: list[float] = []
        self.idle, self.now, self.wake = workers, 0.0, math.inf
        self.late = self.refused = self.batches = self.rows = self.tokens = self.computed = 0
        self.busy = 0.0
        for at, lengths in self._first(load):
            self._push(at, ARRIVE, lengths)

    def _first(self, load: Load) -> Iterator[tuple[float, Sequence[int]]]:
        if self.closed:
            yield from ((0.0, each) for each in itertools.islice(self.requests, max(load.clients, 1)))
            return
        gaps = np.random.default_rng(load.seed).exponential(1 / (load.rate or 1.0), len(load.lengths))
        yield from zip(np.cumsum(gaps).tolist(), self.requests, strict=True)

    def _push(self, at: float, kind: int, what: Any) -> None:
        heapq.heappush(self.events, (at, next(self.serial), kind, what))

    def result(self) -> Simulated:
        while self.events:
            self.now, _, kind, what = heapq.heappop(self.events)
            if kind == ARRIVE:
                self._arrive(what)
            elif kind == DONE:
                self._done(what)
            else:
                self.wake = math.inf
            self._decide()
        counts = (self.late, self.refused, self.now, self.busy, self.workers, self.batches, self.rows, self.tokens, self.computed)
        return Simulated(np.asarray(self.latency), *counts)

    def _arrive(self, lengths: Sequence[int]) -> None:
        if len(self.waiting) + len(lengths) > self.queue:
            self.refused += 1
            self._next()
            return
        request = len(self.came)
        self.came[request], self.left[request] = self.now, len(lengths)
        if not lengths:
            self._answer(0.0)
        for tokens in lengths:
            key = next(self.keys)
            self.request_of[key] = request
            self.waiting.append(Row(key, tokens, self.now, self.now + self.deadline))

    def _done(self, rows: Sequence[Row]) -> None:
        self.idle += 1
        for row in rows:
            request = self.request_of.pop(row.key)
            self.left[request] -= 1
            if not self.left[request]:
                self._answer(self.now - self.came[request])

    def _answer(self, seconds: float) -> None:
        """A request is done; one that is done too late was given up before, as in the server."""
        if seconds > self.deadline:
            self.late += 1
        else:
            self.latency.append(seconds)
        self._next()

    def _next(self) -> None:
        lengths = next(self.requests, None) if self.closed else None
        if lengths is not None:
            self._push(self.now, ARRIVE, lengths)

    def _decide(self) -> None:
        self._give_up()
        while self.idle and self.waiting:
            found = planner.plan(self.waiting, self.now, self.cost, self.policy)
            if not found.run:
                due = self.now + found.wait
                if due < self.wake:
                    self.wake = due
                    self._push(due, WAKE, None)
                return
            self._start(set(found.run))

    def _start(self, chosen: set[int]) -> None:
        rows = [row for row in self.waiting if row.key in chosen]
        self.waiting = [row for row in self.waiting if row.key not in chosen]
        lengths = [row.tokens for row in rows]
        seconds = self._seconds(lengths)
        self.idle -= 1
        self.busy += seconds
        self.batches += 1
        self.rows += len(rows)
        self.tokens += sum(lengths)
        self.computed += sum(lengths) if self.cost.packed else len(lengths) * max(lengths)
        self._push(self.now + seconds, DONE, rows)

    def _seconds(self, lengths: list[int]) -> float:
        key = len(lengths), max(lengths), sum(lengths)
        if key not in self.known:
            self.known[key] = self.cost.one(lengths)
        return self.known[key]

    def _give_up(self) -> None:
        if not self.waiting or self.waiting[0].deadline > self.now:  # all wait as long: the oldest is the first
            return
        self.waiting, late = planner.split_expired(self.waiting, self.now)
        gone = {self.request_of[row.key] for row in late}
        if not gone:
            return
        self.waiting = [row for row in self.waiting if self.request_of[row.key] not in gone]
        self.late += len(gone)
        for request in gone:
            self.left[request] = -1  # rows of it that run already finish for nobody
            self._next()
