"""The simulation: nothing is lost, no worker does two things at once, and queueing theory's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.serve import planner, simulate
from bertc.serve.cost import CostModel
from bertc.serve.planner import Policy
from bertc.serve.simulate import Load

COST = CostModel(np.array([1, 8]), np.array([8, 512]), np.array([[1e-3, 4e-3], [3e-2, 2e-1]]))
CONSTANT = CostModel(np.array([1]), np.array([8]), np.array([[1e-2]]))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 512), max_size=4), min_size=1, max_size=60),
    st.sampled_from(sorted(planner.POLICIES)),
    st.one_of(st.floats(1, 5000), st.none()),
    st.integers(1, 5),
    st.sampled_from([math.inf, 0.01, 0.1]),
    st.integers(1, 30),
)
def test_every_request_is_answered_late_or_refused(
    lengths: list[list[int]], name: str, rate: float | None, workers: int, deadline: float, queue: int
) -> None:
    load = Load(lengths, rate, clients=3)
    found = simulate.simulate(load, COST, Policy(name, 8, 0.003), workers, deadline, queue)
    assert len(found.latency) + found.late + found.refused == len(lengths)
    assert np.all(found.latency >= 0) and np.all(found.latency <= deadline)
    assert found.busy <= found.seconds * workers * (1 + 1e-9), "a worker does one batch at a time"
    assert found.tokens <= found.computed and found.batches <= found.rows


def test_no_worker_runs_two_batches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[float, float]] = []
    start = simulate._Run._start

    def spied(run: simulate._Run, chosen: set[int]) -> None:
        before = run.busy
        start(run, chosen)
        spans.append((run.now, run.now + run.busy - before - 1e-9))

    monkeypatch.setattr(simulate._Run, "_start", spied)
    lengths = [[n] for n in np.random.default_rng(0).integers(1, 512, 400)]
    simulate.simulate(Load(lengths, 300.0), COST, Policy("cost"), 3, queue=10**6)
    for at, _ in spans:
        assert sum(low <= at < high for low, high in spans) <= 3
    assert any(sum(low <= at < high for low, high in spans) == 3 for at, _ in spans)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_worker_is_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait of Poisson arrivals for a constant service s is s load / (2 (1 - load)).

    4 %: 40 samples of 50,000 arrivals have a standard deviation of 1.6 % at half load and of 2.4 % at 0.7."""
    service, count = 0.01, 50_000
    found = simulate.simulate(Load([[8]] * count, load / service, seed=1), CONSTANT, Policy("none"), 1, queue=10**6)
    assert found.latency.mean() - service == pytest.approx(service * load / (2 * (1 - load)), rel=0.04)
    assert found.utilisation == pytest.approx(load, rel=0.02)
    assert found.throughput == pytest.approx(load / service, rel=0.02)


def test_one_worker_follows_lindley() -> None:
    """Each wait is what is left of the one before: max(0, wait + service - gap), to the last digit, near saturation."""
    service, rate = 0.01, 98.0
    found = simulate.simulate(Load([[8]] * 5_000, rate, seed=2), CONSTANT, Policy("none"), 1, queue=10**6)
    steps = service - np.random.default_rng(2).exponential(1 / rate, 5_000)[1:]
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    np.testing.assert_allclose(found.latency, walk - np.minimum.accumulate(walk) + service, rtol=0, atol=1e-9)


def test_a_closed_loop_keeps_its_clients() -> None:
    """Four clients, two workers, 10 ms each: two waves, so that everybody waits one service before its own."""
    found = simulate.simulate(Load([[8]] * 400, clients=4), CONSTANT, Policy("none"), 2)
    assert found.throughput == pytest.approx(200) and found.utilisation == pytest.approx(1.0)
    assert found.percentile(50) == pytest.approx(0.02)


def test_a_request_of_several_rows_is_answered_with_its_last() -> None:
    found = simulate.simulate(Load([[8, 8, 8]], clients=1), CONSTANT, Policy("none"), 2)
    assert found.latency.tolist() == [pytest.approx(0.02)] and found.batches == found.rows == 3


def test_an_answer_after_the_deadline_is_none() -> None:
    """It began in time, and ends too late: the server answers 504."""
    found = simulate.simulate(Load([[8]], clients=1), CONSTANT, Policy("none"), 1, deadline=0.005)
    assert (len(found.latency), found.late) == (0, 1)
    assert found.percentile(99) == math.inf and found.to_json()["p99_ms"] is None


def test_padding_is_counted() -> None:
    found = simulate.simulate(Load([[10, 30]], clients=1), COST, Policy("count", 2, 0.0), 1)
    assert (found.tokens, found.computed, found.waste) == (40, 60, pytest.approx(1 / 3))


@pytest.mark.parametrize("gain", [1.0, 1.25, 3.0], ids=lambda gain: f"eight-together-{gain}-times-as-fast")
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_batching_by_cost_makes_no_answer_later_than_without(share: float, gain: float) -> None:
    """At shares of what is served without batching, on a machine where batches pay little and on one where they pay much."""
    one = np.array([3e-3, 3e-2, 9e-2])
    cost = CostModel(np.array([1, 8]), np.array([8, 128, 512]), np.stack([one, one * 8 / gain], 1))
    drawn = np.clip(np.random.default_rng(0).lognormal(3.2, 0.6, 600), 3, 512)
    lengths = [[int(n)] for n in drawn]

    def served(name: str, **load: float) -> simulate.Simulated:
        return simulate.simulate(Load(lengths, **load), cost, Policy(name), 2)  # type: ignore[arg-type]

    capacity = served("none", clients=64).throughput
    assert served("cost", clients=64).throughput >= 0.99 * capacity * (1 if gain < 2 else 1.5)
    for percent in (50, 99):
        by_cost, without = (served(name, rate=share * capacity).percentile(percent) for name in ("cost", "none"))
        assert by_cost <= without * 1.15
