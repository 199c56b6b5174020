"""Measures of a student against numpy and scipy on the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from bertc.core import CheckFailed
from bertc.distill import judge


def vectors(rows: int = 60, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    teacher = random.normal(size=(rows, 8))
    return (teacher + noise * random.normal(size=(rows, 8))).astype(np.float32), teacher.astype(np.float32)


def test_spearman_is_that_of_scipy_over_all_pairs() -> None:
    student, teacher = vectors()
    found = judge.of_vectors(student, teacher)[2]
    wanted = spearmanr(-pdist(student, "cosine"), -pdist(teacher, "cosine")).statistic
    assert found.value == pytest.approx(wanted, abs=1e-4)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_equal_is_one_and_noise_is_less() -> None:
    _, teacher = vectors()
    assert [each.value for each in judge.of_vectors(teacher * 3, teacher)] == pytest.approx([1, 1, 1], abs=1e-5)
    worse = [[each.value for each in judge.of_vectors(*vectors(noise=noise))] for noise in (0.1, 1.0)]
    assert all(one > other for one, other in zip(*worse, strict=True))


def test_few_texts_have_no_interval() -> None:
    for found in judge.of_vectors(*vectors(rows=10)):
        assert found.low is None and found.high is None


def test_reciprocal_ranks_and_their_drop() -> None:
    passages = np.eye(12, dtype=np.float32)
    queries = passages.copy()
    queries[0] = passages[1] + 0.5 * passages[0]  # its own passage comes second
    queries[2] = passages.sum(0) - passages[2]  # beyond the tenth
    found = judge.reciprocal_ranks(queries, passages)
    assert found[0] == 0.5 and found[2] == 0 and found[3] == 1
    metric = judge.drop_of("MRR@10", found, np.ones(12))
    assert metric.drop == pytest.approx(1.5 / 12) and metric.low < metric.drop < metric.high


def test_classes() -> None:
    teacher = np.array([[3.0, 0.0], [0.0, 3.0]] * 20)
    same, overlap = judge.of_classes(teacher, teacher)
    assert same.value == overlap.value == 1
    same, overlap = judge.of_classes(teacher[:, ::-1], teacher)
    assert same.value == 0 and overlap.value < 0.1


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7])
def test_a_student_that_tells_nothing_apart_gains_nothing(noise: float) -> None:
    _, teacher = vectors()
    random = np.random.default_rng(1)
    student = (np.ones_like(teacher) + noise * random.normal(size=teacher.shape)).astype(np.float32)
    kept, ranks = judge.of_vectors(student, teacher)[1:]
    assert kept.value == pytest.approx(1 / 59) and ranks.value == ranks.low == ranks.high == 0
    assert not judge.reciprocal_ranks(student, student).any() and not judge.reciprocal_ranks(0 * student, teacher).any()


def test_copies_of_a_text_are_one_neighbour_whichever_is_chosen() -> None:
    student, teacher = vectors()
    twice = [np.concatenate([each, each]) for each in (student, teacher)]
    twice[0][60:] *= 1.0001
    assert judge.of_vectors(*twice)[1].value == 1


def test_a_passage_of_several_queries_stands_once() -> None:
    passages = np.eye(12, dtype=np.float32)
    own = np.array([0, 0, 1])
    assert judge.reciprocal_ranks(passages[own], passages, own).tolist() == [1, 1, 1]
    assert judge.reciprocal_ranks(passages[own], passages[own]).tolist() == [0.5, 0.5, 1]


def test_scores_are_ranked_with_an_interval_and_equal_ones_correlate_with_nothing() -> None:
    student, teacher = (each[:, :1] for each in vectors())
    (found,) = judge.of_classes(student, teacher)
    assert found.value == pytest.approx(spearmanr(student, teacher).statistic, abs=1e-9)
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    for pair in ((student * 0, teacher), (student, teacher * 0), (student * 0, teacher * 0)):
        assert [judge.of_classes(*pair)[0].value, judge.of_classes(*pair)[0].low] == [0, 0]
    assert judge.of_classes(student[:10], teacher[:10])[0].low is None


@pytest.mark.parametrize("measure", [judge.of_vectors, judge.of_classes])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_no_measure(measure, value: float) -> None:
    student, teacher = vectors()
    student[3, 1] = value
    with pytest.raises(CheckFailed, match="not finite for 1 text of 60"):
        measure(student, teacher)
