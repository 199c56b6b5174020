"""Measures of a student against numpy and scipy on the same vectors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

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
