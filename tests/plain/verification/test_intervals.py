"""Intervals: against closed forms and simulation, and what a limit makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.verification import intervals as confidence
from bertc.verification.intervals import FAILED, PASSED, UNDECIDED, Metric, all_rows_metric, changed_share, ratio_metric


def right(rng, rows, lost, won, base=0.9):
    """Whether source and artifact are right, row by row, where the artifact loses `lost` and wins `won` of all rows."""
    draw = rng.random(rows)
    source = rng.random(rows) < base
    artifact = source.copy()
    source[draw < lost], artifact[draw < lost] = True, False
    win = (draw >= lost) & (draw < lost + won)
    source[win], artifact[win] = False, True
    return source.astype(float), artifact.astype(float)


def accuracy(source, artifact):
    ones = np.ones(len(artifact))
    return ratio_metric("accuracy", (source, ones), (artifact, ones))


def test_no_change_has_the_closed_form_of_clopper_and_pearson():
    for rows in (8, 64, 1000):
        found = changed_share("class", 0, rows, rows)
        assert (found.source, found.artifact, found.drop, found.low) == (1.0, 1.0, 0.0, 0.0)
        assert found.high == pytest.approx(1 - 0.025 ** (1 / rows), rel=1e-4)


def test_the_textbook_interval():
    """Brown, Cai and DasGupta (2001): 10 of 100, exact: 0.0490 to 0.1762."""
    found = changed_share("class", 10, 100, 100)
    assert (found.low, found.high) == pytest.approx((0.0490, 0.1762), abs=1e-4)


def test_dependent_decisions_count_as_their_units():
    few = changed_share("token", 10, 1000, 100)
    assert few.high == pytest.approx(changed_share("token", 1, 100, 100).high)
    assert few.drop == 0.01
    assert few.low <= 0.01 <= few.high
    rare = changed_share("token", 1, 1000, 100)  # a tenth of a unit: rounded outwards
    assert (rare.low, rare.high) == (0.0, few.high)
    assert "100 independent units" in rare.method


def test_a_drop_by_hand():
    source, artifact = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 1, 0])
    found = accuracy(source, artifact)
    assert (found.source, found.artifact, found.drop, found.rows, found.steady) == (0.75, 0.5, 0.25, 4, False)
    rates = ratio_metric("WER", (np.array([1.0, 0]), np.array([4.0, 6])), (np.array([2.0, 1]), np.array([4.0, 6])), error=True)
    assert (rates.source, rates.artifact) == pytest.approx((0.1, 0.3))
    assert rates.drop == pytest.approx(0.2), "more errors are a drop"
    assert rates.low < 0.2 < rates.high


def test_no_difference_is_no_certainty():
    """Neither for 8 rows nor for 1000: about 3 / rows, the rule of three."""
    for rows in (8, 100, 1000):
        found = accuracy(np.ones(rows), np.ones(rows))
        assert (found.drop, found.steady) == (0.0, True)
        assert found.low == -found.high
        assert 2 / rows < found.high < 4 / rows


def test_the_source_not_at_hand():
    found = ratio_metric("accuracy", None, (np.array([1.0, 0.0]), np.ones(2)))
    assert (found.artifact, found.source, found.drop, found.low) == (0.5, None, None, None)
    assert (found.verdict(1.0), found.rows_needed(1.0)) == (UNDECIDED, None)


@pytest.mark.parametrize(("rows", "lost", "won"), [(100, 0.03, 0.01), (200, 0.05, 0.0), (200, 0.0, 0.0), (200, 0.02, 0.02)])
def test_the_interval_covers_the_true_drop(rows, lost, won):
    """Nominally 95 % of 120 draws; under 108 would be 2.5 standard deviations away."""
    rng = np.random.default_rng(7)
    found = [accuracy(*right(rng, rows, lost, won)) for _ in range(120)]
    covered = sum(each.low <= lost - won <= each.high for each in found)
    assert covered >= 108


@settings(max_examples=6, deadline=None)
@given(st.floats(0, 0.2), st.floats(0, 0.2), st.integers(0, 2**32 - 1))
def test_the_interval_shrinks_with_the_number_of_rows(lost, won, seed):
    rng = np.random.default_rng(seed)
    small, large = (accuracy(*right(rng, rows, lost, won)) for rows in (50, 1600))
    assert large.high - large.low < (small.high - small.low) / 2
    for each in (small, large):
        assert each.low <= each.drop <= each.high or each.low == pytest.approx(each.drop)


def test_the_same_rows_give_the_same_interval():
    source, artifact = right(np.random.default_rng(1), 200, 0.05, 0.02)
    assert accuracy(source, artifact) == accuracy(source, artifact)


def measure(low, drop, high, rows=100, steady=False):
    return Metric("m", 0.9, 0.9 - drop, drop, low, high, rows, "by hand", steady)


@pytest.mark.parametrize(
    ("low", "high", "limit", "said"),
    [
        (-0.001, 0.004, 0.005, PASSED),
        (-0.001, 0.005, 0.005, PASSED),
        (-0.001, 0.006, 0.005, UNDECIDED),
        (0.005, 0.006, 0.005, UNDECIDED),
        (0.0051, 0.02, 0.005, FAILED),
        (None, None, 0.005, UNDECIDED),
    ],
)
def test_a_limit_and_an_interval(low, high, limit, said):
    assert measure(low, 0.0055, high).verdict(limit) == said


def test_how_many_rows_would_decide():
    assert measure(-0.03, 0.0, 0.03, 100, steady=True).rows_needed(0.005) == 600, "none seen: in proportion"
    assert measure(-0.03, 0.0, 0.03, 100).rows_needed(0.005) == 3600, "else with the square"
    assert measure(0.0, 0.03, 0.06, 100).rows_needed(0.01) == 230, "towards a failure as well"
    assert measure(0.0, 0.01, 0.02).rows_needed(0.01) is None, "at the limit none is enough"


@pytest.mark.parametrize(("lost", "won", "limit"), [(0.0, 0.0, 0.01), (0.01, 0.01, 0.02), (0.1, 0.0, 0.05)])
def test_so_many_rows_do_decide(lost, won, limit):
    rng = np.random.default_rng(3)
    first = accuracy(*right(rng, 60, lost, won))
    assert first.verdict(limit) == UNDECIDED
    rows = first.rows_needed(limit)
    while (then := accuracy(*right(rng, rows, lost, won))).verdict(limit) == UNDECIDED and rows < 10**5:
        rows = then.rows_needed(limit)  # the drop of 60 rows is an estimate itself
    assert then.verdict(limit) == (PASSED if lost - won < limit else FAILED)


def test_a_metric_of_all_rows_at_once():
    gold = np.arange(42.0)
    noisy = gold + np.random.default_rng(2).standard_normal(42) * 20
    sides = [gold, noisy]
    found = all_rows_metric("r", lambda which, index: float(np.corrcoef(gold[index], sides[which][index])[0, 1]), 40, paired=True)
    assert found.source == pytest.approx(1)
    assert 0 < found.low < found.drop < found.high
    few = all_rows_metric("r", lambda which, index: 1.0, 19, paired=True)
    assert (few.low, few.verdict(1.0)) == (None, UNDECIDED)
    assert few.method == "no interval: 19 rows, 20 needed"


def test_json_holds_the_level_and_the_method():
    found = accuracy(np.ones(8), np.ones(8)).to_json()
    assert {"name", "source", "artifact", "drop", "low", "high", "rows", "method"} <= set(found)
    assert (found["level"], found["method"]) == (confidence.LEVEL, "paired bootstrap over rows")
    assert math.isfinite(found["high"])
