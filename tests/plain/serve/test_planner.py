"""What waits, what runs: properties of every policy, and the choice of `cost` against all batches that there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.serve import planner
from bertc.serve.cost import CostModel
from bertc.serve.planner import Decision, Policy, Row

LENGTHS, SIZES = np.array([8, 64, 512]), np.array([1, 4, 32])
# Seconds of 8 tokens: a start of 1 ms and so much a token, of a machine where batches pay, and of one where they do not.
PAYS = CostModel(SIZES, LENGTHS, 1e-3 + 1e-6 * LENGTHS[:, None] * SIZES[None, :] ** 0.5)
DOES_NOT = CostModel(SIZES, LENGTHS, (1e-4 + 1e-5 * LENGTHS[:, None]) * SIZES[None, :])
PACKED = CostModel(np.array([8, 64, 2048]), np.array([1]), np.array([[1e-3, 2e-3, 2e-2]]), packed=True)
COSTS = (PAYS, DOES_NOT, PACKED)
ROW = st.tuples(st.integers(1, 600), st.floats(0, 1), st.sampled_from([math.inf, 0.001, 0.05, 2.0]), st.integers(0, 2))


@st.composite
def queues(draw: st.DrawFn, most: int = 40) -> list[Row]:
    found = sorted(draw(st.lists(ROW, min_size=1, max_size=most)), key=lambda each: each[1])
    return [Row(key, tokens, came, came + patience, group) for key, (tokens, came, patience, group) in enumerate(found)]


POLICIES = st.builds(
    Policy,
    name=st.sampled_from(sorted(planner.POLICIES)),
    max_rows=st.integers(1, 40),
    max_wait=st.floats(0, 0.5),
    budget=st.integers(1, 2000),
    target=st.sampled_from([math.inf, 0.01, 0.5]),
)


@settings(deadline=None)
@given(queues(), POLICIES, st.sampled_from(COSTS), st.floats(0, 2))
def test_what_runs_waits_and_keeps_every_limit(waiting: list[Row], policy: Policy, cost: CostModel, after: float) -> None:
    now = waiting[-1].arrived + after
    found = planner.plan(waiting, now, cost, policy)
    by_key = {row.key: row for row in waiting}
    rows = [by_key[key] for key in found.run]  # KeyError for a key that does not wait
    assert len(set(found.run)) == len(rows) <= policy.max_rows
    assert len({row.group for row in rows}) <= 1
    assert bool(rows) != math.isfinite(found.wait)
    if policy.name == "tokens" and len(rows) > 1:
        size = sum(r.tokens for r in rows) if cost.packed else len(rows) * max(r.tokens for r in rows)
        assert size <= policy.budget
    if policy.name in ("none", "tokens"):
        assert waiting[0].key in found.run
    if policy.name == "cost":
        assert min(waiting, key=lambda row: (row.due(policy.target), row.arrived)).key in found.run
    if policy.name != "count":
        assert rows, "an idle worker never waits"


@settings(deadline=None)
@given(queues(), st.integers(1, 40), st.floats(0, 0.5), st.floats(0, 2))
def test_count_waits_for_others_and_never_past_what_is_due(waiting: list[Row], rows: int, wait: float, after: float) -> None:
    now = waiting[-1].arrived + after
    found = planner.plan(waiting, now, PAYS, Policy("count", rows, wait))
    if found.run:
        return
    assert found.wait > 0 and now + found.wait <= waiting[0].arrived + wait + 1e-9
    alike = [row for row in waiting if row.group == waiting[0].group][:rows]
    assert len(alike) < rows
    assert now + found.wait + PAYS.one([row.tokens for row in alike]) <= min(row.deadline for row in alike) + 1e-9


def test_a_deadline_is_sooner_than_the_wait_for_others() -> None:
    waiting = [Row(0, 8, 0.0, deadline=0.01)]
    found = planner.plan(waiting, 0.0, PAYS, Policy("count", 8, max_wait=5.0))
    assert found.wait == pytest.approx(0.01 - PAYS.one([8]))
    assert planner.plan(waiting, found.wait, PAYS, Policy("count", 8, max_wait=5.0)).run == (0,)


def test_more_rows_than_are_looked_at_do_not_wait_for_more() -> None:
    waiting = [Row(key, 8, 0.0) for key in range(planner.WINDOW + 5)]
    assert len(planner.plan(waiting, 0.0, PAYS, Policy("count", 4096, max_wait=60.0)).run) == planner.WINDOW


def work(rows: list[Row], end: float, cost: CostModel, policy: Policy) -> float:
    """The seconds that the rows of a batch take alone that are answered in time when it is done at `end`."""
    return sum(cost.one([row.tokens]) for row in rows if row.due(policy.target) >= end)


def best_rate(waiting: list[Row], now: float, cost: CostModel, policy: Policy) -> tuple[float, float]:
    """The most work in time a second of all batches with the first row, and the least time of one, by trying every subset that is
    a run of neighbours in length."""
    first = min(waiting, key=lambda row: (row.due(policy.target), row.arrived))
    alike = sorted((r for r in waiting if r.group == first.group), key=lambda r: (r.tokens, r.arrived, r.key))
    rates, times = [], []
    for low, high in itertools.combinations(range(len(alike) + 1), 2):
        rows = alike[low:high]
        if first in rows and len(rows) <= policy.max_rows:
            took = cost.one([row.tokens for row in rows])
            times.append(took)
            rates.append(work(rows, now + took, cost, policy) / took if took <= patience(rows, first, now, cost, policy) else 0.0)
    return max(rates), min(times)


def patience(rows: list[Row], first: Row, now: float, cost: CostModel, policy: Policy) -> float:
    """How long a batch of these may take: without a target, as long as one by one in the mean, or as the first has waited."""
    if math.isfinite(policy.target):
        return math.inf
    one_by_one = np.cumsum([cost.one([row.tokens]) for row in rows])
    return max(float(one_by_one.mean()) * (1 + 1e-6), now - first.arrived)


@settings(deadline=None)
@given(queues(most=9), st.sampled_from(COSTS), st.integers(1, 9), st.sampled_from([math.inf, 0.01, 0.5]), st.floats(0, 0.01))
def test_cost_takes_the_best_of_all_batches(waiting: list[Row], cost: CostModel, rows: int, target: float, after: float) -> None:
    policy, now = Policy("cost", rows, target=target), waiting[-1].arrived + after
    chosen = [row for row in waiting if row.key in planner.plan(waiting, now, cost, policy).run]
    took = cost.one([row.tokens for row in chosen])
    most, least = best_rate(waiting, now, cost, policy)
    assert (
        work(chosen, now + took, cost, policy) / took == pytest.approx(most)
        if len(waiting) > 1 and rows > 1
        else len(chosen) == 1
    )
    if not most:
        assert took == pytest.approx(least), "too late for all: the shortest way to be rid of the first"


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.sampled_from([0.0, 0.1]), st.floats(0, 99))
def test_cost_is_no_batching_where_batches_do_not_pay(lengths: list[int], dearer: float, after: float) -> None:
    """t(b, L) >= b t(1, L): rows of one length gain nothing together, and short rows are padding in the batch of a long one."""
    waiting = [Row(key, tokens, 0.0) for key, tokens in enumerate(lengths)]
    cost = CostModel(SIZES, LENGTHS, DOES_NOT.table * SIZES[None, :] ** dearer)
    chosen = planner.plan(waiting, after, cost, Policy("cost")).run
    assert 0 in chosen
    assert cost.one([lengths[key] for key in chosen]) <= sum(cost.one([lengths[key]]) for key in chosen) * (1 + 1e-9)
    assert {lengths[key] for key in chosen} == {lengths[0]}


def test_cost_fills_the_batch_where_batches_pay() -> None:
    waiting = [Row(key, 8, 0.0) for key in range(40)]
    assert len(planner.plan(waiting, 0.0, PAYS, Policy("cost", 32)).run) == 32


def test_a_row_that_is_due_is_not_held_up_by_a_fuller_batch() -> None:
    """Together they take 30 ms and are late; the one that is due within 12 ms runs with those that let it."""
    waiting = [Row(0, 8, 0.0, deadline=0.012), *(Row(key, 500, 0.0) for key in range(1, 9))]
    slow = CostModel(SIZES, LENGTHS, 5e-3 + 5e-5 * LENGTHS[:, None] * SIZES[None, :] ** 0.1)
    assert slow.one([8, 500]) > 0.012 > slow.one([8])
    found = planner.plan(waiting, 0.0, slow, Policy("cost", 32))
    assert 0 in found.run


def test_a_batch_that_gains_little_is_short_while_there_is_no_queue() -> None:
    """Rows come at once: four together take 3.2 of one alone, one by one 2.5 in the mean. After a wait the most work counts."""
    little = CostModel(SIZES, LENGTHS, np.array([[1e-3, 3.2e-3, 25e-3]] * 3))
    waiting = [Row(key, 8, 0.0) for key in range(4)]
    assert len(planner.plan(waiting, 0.0, little, Policy("cost")).run) == 1
    assert len(planner.plan(waiting, 0.01, little, Policy("cost")).run) == 4


def test_nothing_waits() -> None:
    assert planner.plan([], 0.0, PAYS, Policy("cost")) == Decision()


def test_rows_past_their_deadline_leave() -> None:
    rows = [Row(0, 1, 0.0, 1.0), Row(1, 1, 0.0, 2.0), Row(2, 1, 0.0)]
    assert planner.split_expired(rows, 1.0) == (rows[1:], rows[:1])
    assert planner.split_expired(rows, 0.5) == (rows, [])
