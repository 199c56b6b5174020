"""Trials and their front, on costs and qualities that are known: no training, no engine."""

from __future__ import annotations

import itertools

import pytest

from bertc.core import Missing, Progress
from bertc.search import Budget, Candidate, Request
from bertc.search.cost import Cost
from bertc.search.finalists import _best, turns
from bertc.search.space import Space
from bertc.search.table import Table, stacks
from bertc.search.trials import Trial, front, hinted, require_optuna, run

SPACE = Space(4, (1, 2, 4), (16, 32, 64), ("fp32", "int8-dynamic"), False, {})
BUDGET = Budget("latency", 3.0, "3s")


def layer(heads: int, ffn: int, factor: float) -> Cost:
    return Cost(factor * (heads / 8 + ffn / 128), 1000 * heads + 100 * ffn, 0, 10)


def known() -> Table:
    sizes = [each for (each, depth) in stacks(SPACE) if depth == 4]
    rows = {mode: {each: layer(*each, factor) for each in sizes} for mode, factor in (("fp32", 1.0), ("int8-dynamic", 0.5))}
    return Table(dict.fromkeys(rows, Cost(0.5, 5000, 0, 5)), rows, 4.5)


def quality(each: Candidate) -> tuple[float, str]:
    """More of anything is better, and the last layers more than the first."""
    parts = zip(each.layers, each.heads, each.ffn, strict=True)
    return sum((1 + at) * (heads / 4 + ffn / 64) for at, heads, ffn in parts) - 8 * (each.precision != "fp32"), "trained"


def tried(seed: int, trials: int = 60):
    return run(SPACE, known(), BUDGET, quality, Request("", latency="3s", trials=trials, seed=seed), Progress())


def test_a_candidate_costs_the_sum_of_its_layers() -> None:
    found = known().of(Candidate((0, 3), (1, 4), (32, 16), "int8-dynamic"))
    rows = Cost(0.5, 5000, 0, 5) + layer(1, 32, 0.5) + layer(4, 16, 0.5)
    assert (found.seconds, found.weight_bytes, found.kernels) == pytest.approx((rows.seconds, rows.weight_bytes, 25))
    again = Table.of_state(known().state())
    assert again == known()


def test_no_trial_of_the_front_is_beaten() -> None:
    trials = tried(0)
    best = front(trials, BUDGET)
    assert len(best) > 3
    for one, other in itertools.product(best, trials):
        better = other.quality >= one.quality and other.cost.seconds <= one.cost.seconds
        assert not better or (other.quality, other.cost.seconds) == (one.quality, one.cost.seconds)
    for each in trials:  # and all that nothing beats are in it
        beaten = any(o.quality >= each.quality and o.cost.seconds <= each.cost.seconds for o in best)
        assert beaten


def test_the_same_seed_gives_the_same_trials() -> None:
    one, again, other = tried(0), tried(0), tried(1)
    assert one == again
    assert one != other


def test_the_search_is_better_than_what_one_would_try_by_hand() -> None:
    trials = tried(0)
    by_hand = max(each.quality for each in trials if each.hinted and each.within)
    assert max(each.quality for each in trials if each.within) > by_hand
    free = [each for each in trials if not each.hinted]
    assert sum(each.within for each in free[20:]) > 0.4 * len(free[20:])


def test_hints_are_nearest_to_the_limit_from_below_in_each_precision() -> None:
    found = hinted(SPACE, known(), BUDGET, 6)
    for mode in SPACE.precisions:
        costs = [known().of(each).seconds for each in found if each.precision == mode]
        assert len(costs) == 3 and all(cost <= 3.0 for cost in costs)
        assert costs == sorted(costs, reverse=True)
    # What one would try first: all of the model in the precision in which it fits.
    assert SPACE.whole(range(4), "int8-dynamic") in found


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [
        (1, 300, [(1, 300)]),
        (2, 300, [(2, 150), (1, 150)]),
        (4, 600, [(4, 150), (2, 150), (1, 300)]),
        (3, 7, [(3, 1), (2, 1), (1, 5)]),
        (4, 1, [(1, 1)]),
        (5, 0, [(5, 0)]),
    ],
)
def test_the_better_half_trains_on(count: int, steps: int, expected: list) -> None:
    assert turns(count, steps) == expected
    assert sum(each for _, each in expected) == steps


def test_finalists_are_of_different_layers_first() -> None:
    found = [
        Trial(
            at, Candidate(layers, (4,) * len(layers), (ffn,) * len(layers), "fp32"), value, layer(4, ffn, 1.0), within, False, ""
        )
        for at, (layers, ffn, value, within) in enumerate(
            [
                ((0, 1), 64, 0.9, True),
                ((0, 1), 32, 0.8, True),
                ((0, 2), 16, 0.5, True),
                ((0, 3), 64, 0.99, False),
                ((0, 1), 64, 0.9, True),
                ((1,), 64, 0.7, True),
            ]
        )
    ]
    assert [each.number for each in _best(found)] == [0, 5, 2, 1]


def test_without_optuna_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(Missing, match=r"pip install 'bertc\[search\]'"):
        require_optuna()
