"""Which waiting rows run now, and together: pure functions of the queue, the clock and the measured times of the artifact.

A row is one text, one pair or one recording; a request of several is several rows. The same functions decide in the server and in
its simulation. Policies, one function each:

none    the oldest row alone.
count   the first `max_rows` in the order of arrival, or all there are when the oldest has waited `max_wait`.
tokens  the oldest row and its neighbours in length, while the batch stays within a budget of tokens.
cost    the row that is due first, with those neighbours in length that make the most work finish in time a second, by the
        measured time of each batch: the work of a row is the time that it takes alone. Where a batch takes as long as its rows
        one by one, it is one row: no batching.
        In time is within `target` of its arrival, and before its deadline. Without a target a batch takes no longer than its
        rows gain by it, or than its first row has waited.

No more than the WINDOW oldest rows are looked at, so that a decision costs the same whatever waits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

WINDOW = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One waiting row: its length in tokens (or samples), and when it came and must be answered, in seconds of one clock.

    `group`: rows of different groups are never batched (shapes that cannot be padded to each other); below 0 it is by itself."""

    key: int
    tokens: int
    arrived: float
    deadline: float = math.inf
    group: int = 0

    def due(self, target: float) -> float:
        """When it should be answered, for a `target` of seconds."""
        return min(self.deadline, self.arrived + target)


class Cost(Protocol):
    """The time of batches: int64 arrays [batches] of rows, longest length and tokens without padding -> seconds [batches]."""

    @property
    def packed(self) -> bool:
        """Whether a batch costs its tokens, not its rows times the longest."""
        ...

    def seconds(self, rows: np.ndarray, longest: np.ndarray, tokens: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy by its name, and its numbers: most rows of a batch, seconds a row waits for others, tokens of a batch,
    seconds within which answers should come."""

    name: str = "cost"
    max_rows: int = 32
    max_wait: float = 0.005
    budget: int = 512
    target: float = math.inf


@dataclasses.dataclass(frozen=True)
class Decision:
    """`run`: the keys of the rows that run now, () for none; then `wait`, the seconds until the next decision is due."""

    run: tuple[int, ...] = ()
    wait: float = math.inf


Planner = Callable[[Sequence[Row], float, "Cost", Policy], Decision]


def plan(waiting: Sequence[Row], now: float, cost: Cost, policy: Policy) -> Decision:
    """What an idle worker does. `waiting` in the order of arrival, all of one model. KeyError for an unknown policy."""
    if not waiting:
        return Decision()
    return POLICIES[policy.name](waiting[:WINDOW], now, cost, policy)


def split_expired(waiting: Sequence[Row], now: float) -> tuple[list[Row], list[Row]]:
    """(rows that can still be answered, rows whose deadline has passed)."""
    alive = [row for row in waiting if row.deadline > now]
    return alive, [row for row in waiting if row.deadline <= now] if len(alive) < len(waiting) else []


def _none(waiting: Sequence[Row], now: float, cost: Cost, policy: Policy) -> Decision:
    return Decision((waiting[0].key,))


def _count(waiting: Sequence[Row], now: float, cost: Cost, policy: Policy) -> Decision:
    most = 1 if waiting[0].group < 0 else min(policy.max_rows, WINDOW)
    alike = [row for row in waiting if row.group == waiting[0].group][:most]
    due = waiting[0].arrived + policy.max_wait
    if len(alike) < most and now < due:
        # No row is kept for others so long that it comes too late by that.
        due = min(due, min(row.deadline for row in alike) - _seconds(alike, cost))
        if now < due:
            return Decision(wait=due - now)
    return Decision(tuple(row.key for row in alike))


def _seconds(rows: Sequence[Row], cost: Cost) -> float:
    """The time of a batch of these rows."""
    lengths = [row.tokens for row in rows]
    return float(cost.seconds(*(np.array([n]) for n in (len(lengths), max(lengths), sum(lengths))))[0])


def _tokens(waiting: Sequence[Row], now: float, cost: Cost, policy: Policy) -> Decision:
    ordered, at = _by_length(waiting, waiting[0])
    low = high = at
    total = ordered[at].tokens
    while high - low + 1 < policy.max_rows:
        side = _nearer(ordered, at, low, high)
        if side is None:
            break
        row = ordered[side]
        longest = max(ordered[high].tokens, row.tokens)
        size = total + row.tokens if cost.packed else longest * (high - low + 2)
        if size > policy.budget:
            break
        low, high, total = min(low, side), max(high, side), total + row.tokens
    return Decision(tuple(row.key for row in ordered[low : high + 1]))


def _nearer(ordered: Sequence[Row], at: int, low: int, high: int) -> int | None:
    """The neighbour of ordered[low:high + 1] that is nearer in length to ordered[at]; None where there is none."""
    sides = [side for side in (low - 1, high + 1) if 0 <= side < len(ordered)]
    return min(sides, key=lambda side: abs(ordered[side].tokens - ordered[at].tokens), default=None)


def _cost(waiting: Sequence[Row], now: float, cost: Cost, policy: Policy) -> Decision:
    first = min(waiting, key=lambda row: (row.due(policy.target), row.arrived))
    if policy.max_rows == 1 or len(waiting) == 1:
        return Decision((first.key,))
    ordered, at = _by_length(waiting, first)
    start, stop = max(0, at - policy.max_rows + 1), min(len(ordered), at + policy.max_rows)
    ordered, at = ordered[start:stop], at - start
    # A window of the sorted rows that holds `first`: rows low..high, low <= at <= high.
    lows, highs = (grid.ravel() for grid in np.meshgrid(np.arange(at + 1), np.arange(at, len(ordered)), indexing="ij"))
    fits = highs - lows < policy.max_rows
    lows, highs = lows[fits], highs[fits]
    lengths = np.array([row.tokens for row in ordered], np.int64)
    sums = np.concatenate([[0], np.cumsum(lengths)])
    rows = highs - lows + 1
    seconds = cost.seconds(rows, lengths[highs], sums[highs + 1] - sums[lows])
    alone = cost.seconds(np.ones_like(lengths), lengths, lengths)
    gain = _work_in_time(ordered, alone, lows, highs, now + seconds, policy.target) / seconds
    if math.isinf(policy.target):
        gain = np.where(seconds <= _patience(alone, lows, highs, now - first.arrived), gain, 0.0)
    best = int(np.argmax(gain))
    if not gain[best]:  # nothing can be answered in time: the least work that gets rid of the first
        best = int(np.argmin(seconds))
    return Decision(tuple(row.key for row in ordered[int(lows[best]) : int(highs[best]) + 1]))


def _work_in_time(
    ordered: Sequence[Row], alone: np.ndarray, lows: np.ndarray, highs: np.ndarray, ends: np.ndarray, target: float
) -> np.ndarray:
    """The seconds that those rows of each window would take one by one that are answered in time when it ends at `ends`.

    Their number will not do: short rows in the batch of a long one are many a second, and mostly padding.
    """
    sums = np.concatenate([[0], np.cumsum(alone)])
    work = sums[highs + 1] - sums[lows]
    deadlines = np.array([row.due(target) for row in ordered])
    if np.all(np.isinf(deadlines)) or ends.max() <= deadlines.min():
        return np.asarray(work)
    met = deadlines[None, :] >= ends[:, None]
    places = np.arange(len(ordered))[None, :]
    return np.asarray((alone * (met & (places >= lows[:, None]) & (places <= highs[:, None]))).sum(1))


def _patience(alone: np.ndarray, lows: np.ndarray, highs: np.ndarray, waited: float) -> np.ndarray:
    """The longest that each window may take, where no target says it: seconds [windows].

    That is the mean time at which its rows would be done one by one, the shortest first: where the batch is sooner, its own
    rows gain by it. Or as long as the first row has `waited`: batches are short while there is no queue, and the most work a
    second counts where there is one. Rows that come while a batch runs wait for all of it.
    """
    sums = np.concatenate([[0], np.cumsum(alone)])
    turns = np.concatenate([[0], np.cumsum(alone * np.arange(len(alone)))])  # each by the place at which it is run
    mean = ((highs + 1) * (sums[highs + 1] - sums[lows]) - (turns[highs + 1] - turns[lows])) / (highs - lows + 1)
    return np.asarray(np.maximum(mean * (1 + 1e-9), waited))  # of one row the mean is its own time, but for rounding


def _by_length(waiting: Sequence[Row], chosen: Row) -> tuple[list[Row], int]:
    """(the rows that `chosen` can be batched with, by length, the place of `chosen` among them)."""
    ordered = sorted((row for row in waiting if row.group == chosen.group), key=lambda row: (row.tokens, row.arrived, row.key))
    return ordered, next(i for i, row in enumerate(ordered) if row.key == chosen.key)


POLICIES: Mapping[str, Planner] = {"none": _none, "count": _count, "tokens": _tokens, "cost": _cost}
