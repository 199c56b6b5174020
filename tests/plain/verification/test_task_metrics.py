"""Every task metric against known values or the library's own answer on the whole, as its users would have it."""

from __future__ import annotations

import builtins
import types

import numpy as np
import pytest

from bertc.core.errors import DataError, Missing
from bertc.data.labels import Answers, GoldScore, Labels, PairText, Tags
from bertc.data.samples import Sample
from bertc.verification import task_metrics as scores

metrics = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(11)


def scored(labels, gold, artifact, source=None):
    """Measures by name; outputs in two samples, as they come in batches."""
    scorer = scores.scorer_for(labels)
    count = len(gold)
    for rows in (slice(0, count // 2), slice(count // 2, count)):
        if not gold[rows]:
            continue
        ids = np.ones((len(gold[rows]), 8), np.int64)
        sample = Sample("s", {"ids": ids, "attention_mask": ids}, labels=tuple(gold[rows]))
        sides = [{name: array[rows] for name, array in side.items()} if side else None for side in (source, artifact)]
        scorer.add(*sides, sample)
    return {each.name: each for each in scorer.result()}


def logits_of(classes, width):
    return {"logits": np.eye(width)[classes]}


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_equal_sklearn(classes):
    gold, source, artifact = RNG.integers(0, classes, (3, 60))
    artifact = np.where(RNG.random(60) < 0.7, gold, artifact)
    labels = Labels("sequence-classification", {1: "yes"}, classes)
    found = scored(labels, gold.tolist(), logits_of(artifact, classes), logits_of(source, classes))
    accuracy, f1 = found["accuracy"], found["F1 of yes" if classes == 2 else "F1 (macro)"]
    assert accuracy.source == pytest.approx(metrics.accuracy_score(gold, source))
    assert accuracy.artifact == pytest.approx(metrics.accuracy_score(gold, artifact))
    average = "binary" if classes == 2 else "macro"
    assert f1.source == pytest.approx(metrics.f1_score(gold, source, average=average))
    assert f1.artifact == pytest.approx(metrics.f1_score(gold, artifact, average=average))
    for each in (accuracy, f1):
        assert each.low <= each.drop <= each.high
        assert each.rows == 60
    assert accuracy.high < 0, "the artifact is better here"


def test_the_same_answers_are_no_certainty_for_f1():
    gold = [0, 1] * 20
    same = logits_of(gold, 2)
    f1 = scored(Labels("sequence-classification", classes=2), gold, same, same)["F1 of class 1"]
    assert f1.low < 0 == f1.drop < f1.high


def test_ranking_equals_sklearn_and_the_ranks():
    """Scores 0.9 0.8 0.7; the relevant passage is second: 1/2, and NDCG 1 / log2(3)."""
    labels = Labels("sequence-classification", classes=1)
    gold = [GoldScore(value, query) for query in "ab" for value in (0.0, 1.0, 0.0)]
    artifact = {"logits": np.array([[0.9], [0.8], [0.7], [0.1], [0.9], [0.5]])}
    source = {"logits": np.array([[0.1], [0.8], [0.7], [0.1], [0.9], [0.5]])}
    found = scored(labels, gold, artifact, source)
    assert list(found) == ["NDCG@10", "MRR@10"]
    assert (found["MRR@10"].source, found["MRR@10"].artifact, found["MRR@10"].rows) == (1.0, 0.75, 2)
    assert found["NDCG@10"].artifact == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_reciprocal_rank():
    gold = np.array([0.0, 1.0, 2.0] + [0.0] * 12)
    assert scores.reciprocal_rank(gold, -np.arange(15.0)) == 0.5
    assert scores.reciprocal_rank(gold, np.zeros(15)) == 0.0, "all are equal: the relevant ones stand last"
    assert scores.reciprocal_rank(gold, np.arange(15.0)) == 0.0, "beyond the tenth"
    assert scores.reciprocal_rank(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == 0.5


def test_queries_without_a_relevant_passage():
    labels = Labels("sequence-classification", classes=1)
    gold = [GoldScore(0.0, "a"), GoldScore(0.0, "a")]
    with pytest.raises(DataError, match="no query has a relevant passage"):
        scored(labels, gold, {"logits": np.zeros((2, 1))})


def test_spearman_of_embedded_pairs_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    vectors = RNG.standard_normal((60, 5)).astype(np.float32)
    near = vectors + 0.3 * RNG.standard_normal((60, 5)).astype(np.float32)
    values = RNG.random(30)
    gold = [PairText(row // 2, GoldScore(float(values[row // 2]), f"text {row // 2}")) for row in range(60)]
    found = scored(Labels("sentence-embedding"), gold, {"sentence_embedding": near}, {"sentence_embedding": vectors})
    (spearman,) = found.values()
    for got, side in ((spearman.source, vectors), (spearman.artifact, near)):
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(side[::2], side[1::2], strict=True)]
        assert got == pytest.approx(stats.spearmanr(values, cosines).statistic)
    assert spearman.rows == 30
    assert spearman.low <= spearman.drop <= spearman.high


def test_copies_of_a_text_are_not_ranked_by_rounding():
    """Ten pairs of equal texts, as float32 gives them in batches of other lengths, are ties on both sides."""
    vectors = RNG.standard_normal((60, 5)).astype(np.float32)
    vectors[1:21:2] = vectors[:20:2]
    rounded = vectors * (1 + 1e-7 * RNG.standard_normal((60, 1))).astype(np.float32)
    gold = [PairText(row // 2, GoldScore(row // 2 + 0.5, str(row // 2))) for row in range(60)]
    sides = ({"sentence_embedding": side} for side in (rounded, vectors))
    (spearman,) = scored(Labels("sentence-embedding"), gold, *sides).values()
    assert (spearman.drop, spearman.steady) == (0, True)
    assert -0.3 < spearman.low < 0 < spearman.high < 0.3, "and 30 pairs are no certainty: one row in ten may be lost"


def test_labels_that_are_all_equal():
    gold = [GoldScore(0.5, str(row)) for row in range(4)]
    with pytest.raises(DataError, match=r"all 4 labels are 0\.5"):
        scored(Labels("sequence-classification", classes=1), gold, {"logits": np.zeros((4, 1))})


def test_zero_and_one_without_a_query_are_classes():
    gold = [GoldScore(value) for value in (0.0, 1.0, 1.0)]
    (accuracy,) = scored(Labels("sequence-classification", classes=1), gold, {"logits": np.array([[-1.0], [2], [-3]])}).values()
    assert (accuracy.name, accuracy.artifact) == ("accuracy", pytest.approx(2 / 3))


NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}


def test_entities():
    """Gold: PER(0,1) LOC(3) | PER(0). Said: PER(0,1) | PER(0) LOC(2): 2 right, 3 wanted, 3 said."""
    pytest.importorskip("nervaluate")
    gold = [Tags((1, 2, 3, 4), (1, 2, 0, 3)), Tags((1, 2, 3), (1, 0, 0))]
    said = np.zeros((2, 8), int)
    said[0, 1:5], said[1, 1:4] = (1, 2, 0, 0), (1, 0, 3)
    truth = np.zeros((2, 8), int)
    truth[0, 1:5], truth[1, 1:4] = (1, 2, 0, 3), (1, 0, 0)
    outputs, perfect = ({"logits": np.eye(4)[side]} for side in (said, truth))
    found = scored(Labels("token-classification", NAMES), gold, outputs, perfect)
    assert list(found) == ["F1 of entities", "accuracy of words"]
    assert (found["F1 of entities"].source, found["F1 of entities"].artifact) == pytest.approx((1.0, 2 / 3))
    assert found["accuracy of words"].artifact == pytest.approx(5 / 7)
    assert list(scored(Labels("token-classification"), gold, outputs)) == ["accuracy of words"]


@pytest.mark.parametrize(
    ("gold", "said", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower!", 1.0),
        ("in 1889", "1889", 2 / 3),
        ("Paris", "London", 0.0),
        ("", "", 1.0),
        ("", "Paris", 0.0),
        ("a a b b", "b b b", 4 / 5),  # the article goes
    ],
)
def test_squad_f1(gold, said, f1):
    """Values of SQuAD's evaluate-v2.0.py."""
    assert scores.answer_f1(gold, said) == pytest.approx(f1)


def answers(texts, answerable=True):
    words = "In 1889 Paris was lit"
    spans = ((0, 2), (3, 7), (8, 13), (14, 17), (18, 21))
    return Answers(words, (None, *spans, None, None), texts, answerable)


def spans_of(*ends):
    start, end = np.zeros((2, len(ends), 8))
    for row, (a, b) in enumerate(ends):
        start[row, a], end[row, b] = 5, 5
    return {"start_logits": start, "end_logits": end}


def test_answers():
    gold = [answers(("1889", "in 1889")), answers(("Paris",))]
    found = scored(Labels("question-answering"), gold, spans_of((1, 2), (3, 4)), spans_of((2, 2), (3, 3)))
    assert (found["exact match"].source, found["exact match"].artifact) == (1.0, 0.5)
    assert (found["F1 of answers"].source, found["F1 of answers"].artifact) == pytest.approx((1.0, (1 + 2 / 3) / 2))


def test_an_answer_ends_after_it_begins_and_lies_in_the_context():
    assert scores.best_answer(*(array[0] for array in spans_of((4, 2)).values()), answers(("x",))) in ("was lit", "In 1889")
    assert scores.best_answer(*(array[0] for array in spans_of((7, 7)).values()), answers(("x",))) != ""


def test_no_answer_is_an_answer_where_some_questions_have_none():
    nothing = [array[0] for array in spans_of((0, 0)).values()]
    assert scores.best_answer(*nothing, answers((), answerable=False)) == ""
    assert scores.best_answer(*nothing, answers(("x",))) != ""


def test_transcripts_equal_jiwer_over_all_rows():
    jiwer = pytest.importorskip("jiwer")
    symbols = dict(enumerate(["<pad>", "|", "A", "B", "C"]))
    ids = [[2, 2, 0, 2, 1, 3, 0, 0], [4, 1, 3, 3, 0, 3, 1, 2]]  # "AA B" and "C BB A"
    gold = ["AA C", "C BB"]
    found = scored(Labels("ctc", symbols=symbols), gold, {"logits": np.eye(5)[ids]}, {"logits": np.eye(5)[ids]})
    assert found["WER"].artifact == pytest.approx(jiwer.wer(gold, ["AA B", "C BB A"])) == pytest.approx(2 / 4)
    assert found["CER"].artifact == pytest.approx(jiwer.cer(gold, ["AA B", "C BB A"]))
    assert found["WER"].drop == 0
    assert found["WER"].high > 0.5, "two recordings say next to nothing"


def test_dead_rows_and_rows_without_a_label_do_not_count():
    scorer = scores.scorer_for(Labels("sequence-classification", classes=2))
    sample = Sample("s", {"x": np.zeros((3, 1))}, (1,), labels=(1, 1, None))
    scorer.add(None, {"logits": np.array([[0.0, 1], [1, 0], [1, 0]])}, sample)
    accuracy = scorer.result()[0]
    assert (accuracy.rows, accuracy.artifact, accuracy.drop) == (1, 1.0, None)


def test_an_output_of_another_rank():
    with pytest.raises(DataError, match="the labels need an output 'logits' of rank 2; the model has x"):
        scored(Labels("sequence-classification", classes=2), [1, 0], {"x": np.zeros((2, 3, 4))})


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.partition(".")[0] in ("jiwer", "scipy"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(scores, "importlib", types.SimpleNamespace(import_module=absent))
    with pytest.raises(Missing, match=r"needs jiwer .*pip install 'bertc\[metrics\]'"):
        scored(Labels("ctc", symbols={0: "<pad>"}), ["A"], {"logits": np.zeros((1, 4, 2))})
