"""Task metrics against gold labels, of the source and of the artifact on the same rows. The first of a task is judged.

scikit-learn, scipy, jiwer and nervaluate do the counting; the reciprocal rank and SQuAD's two scores, which no light and
maintained package has, are written from their definitions, and F1 of classes for speed.
"""

from __future__ import annotations

import collections
import importlib
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core import DataError, Missing
from ..data import Answers, Labels, PairText, Sample, Tags
from . import intervals as confidence
from .decisions import ctc_collapse, live_frames
from .intervals import Metric

Arrays = Mapping[str, np.ndarray]
CUT = 10  # NDCG@10 and MRR@10
LONGEST_ANSWER = 30  # tokens, as in the BERT paper's SQuAD code


def scorer_for(labels: Labels) -> Scorer:
    """The scorer of a task."""
    kinds: dict[str, type[Scorer]] = {
        "sequence-classification": ScalarScorer if labels.classes == 1 else ClassScorer,
        "audio-classification": ClassScorer,
        "token-classification": TagScorer,
        "question-answering": AnswerScorer,
        "sentence-embedding": PairScorer,
        "ctc": TranscriptScorer,
    }
    return kinds[labels.task](labels)


def metrics_library(name: str) -> Any:
    """A module of a metrics package. Raises Missing with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"this metric needs {name.partition('.')[0]} ({error}); pip install 'bertc[metrics]'") from error


class Scorer:
    """Keeps the gold label of each row and what source and artifact predict for it, batch by batch."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.gold: list[Any] = []
        self.source: list[Any] = []
        self.artifact: list[Any] = []
        self.rows: list[str] = []

    def add(self, expected: Arrays | None, got: Arrays, sample: Sample) -> None:
        """`expected` is None where the source is not available."""
        rows = [row for row, label in enumerate(sample.labels) if label is not None and row not in sample.dead_rows]
        self.gold += [sample.labels[row] for row in rows]
        self.rows += [sample.where(row) for row in rows]
        self.artifact += self.predictions(got, sample, rows)
        self.source += self.predictions(expected, sample, rows) if expected is not None else []

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[Any]:
        """What one model predicts for each of the rows."""
        raise NotImplementedError

    def result(self) -> tuple[Metric, ...]:
        """Raises DataError where the labels allow no metric."""
        raise NotImplementedError

    def count_rows(
        self, count: Callable[[Any, Any], tuple[float, float]]
    ) -> tuple[confidence.RowRatio | None, confidence.RowRatio]:
        """Numerator and denominator of each row, for the source and for the artifact."""
        counted = [[count(g, predicted) for g, predicted in zip(self.gold, side, strict=True)] for side in self._sides()]
        arrays = [tuple(np.array(side, np.float64).T) for side in counted]
        return (arrays[0] if len(arrays) > 1 else None), arrays[-1]

    def _sides(self) -> list[list[Any]]:
        return [self.source, self.artifact] if self.source else [self.artifact]

    def mean(self, name: str, value: Callable[[Any, Any], float]) -> Metric:
        """A metric that is the mean over rows of `value(gold, predicted)`."""
        return confidence.ratio_metric(name, *self.count_rows(lambda gold, predicted: (float(value(gold, predicted)), 1.0)))


def _output_of_rank(outputs: Arrays, name: str, rank: int) -> np.ndarray:
    ranked = [key for key, array in outputs.items() if array.ndim == rank]
    if not ranked:
        raise DataError(f"the labels need an output {name!r} of rank {rank}; the model has {', '.join(outputs)}")
    return outputs[name if name in ranked else ranked[0]]


class ClassScorer(Scorer):
    """Accuracy, and F1: of class 1 where there are two, else the mean over the classes (macro)."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[int]:
        logits = _output_of_rank(outputs, "logits", 2)
        predicted = (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else logits.argmax(-1)
        return [int(predicted[row]) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        return self.mean("accuracy", lambda gold, predicted: gold == predicted), self._f1()

    def _f1(self) -> Metric:
        present = sorted({*self.gold, *self.source, *self.artifact})
        binary = set(present) <= {0, 1} and (self.labels.classes or 2) <= 2
        # Behind the rows, one that the artifact loses and one that it wins (confidence.quotient says why).
        often = collections.Counter(self.gold).most_common(1)[0][0]
        other = next((c for c in present if c != often), 1 - often if binary else often + 1)
        gold = np.array([*self.gold, often, often])
        ends = ((other, often),) if not self.source else ((often, other), (other, often))
        predicted = [np.array([*side, *end]) for side, end in zip(self._sides(), ends, strict=True)]
        expected = [1] if binary else present

        def score(which: int, index: np.ndarray) -> float:
            return f1(gold[index], predicted[which if self.source else 0][index], expected)

        name = f"F1 of {self.labels.names.get(1, 'class 1')}" if binary else "F1 (macro)"
        return confidence.all_rows_metric(
            name, score, len(self.gold), paired=bool(self.source), steady=self.source == self.artifact
        )


def f1(gold: np.ndarray, predicted: np.ndarray, classes: Sequence[int]) -> float:
    """The mean F1 of some classes, 0 for one that is nowhere: sklearn.metrics.f1_score(average="macro", zero_division=0),
    which takes milliseconds to check its arguments, and the bootstrap asks two thousand times."""
    many = 1 + max(gold.max(), predicted.max(), *classes)
    parts = (gold[gold == predicted], gold, predicted)
    right, expected, found = (np.bincount(part, minlength=many)[list(classes)] for part in parts)
    return float(np.mean(2 * right / np.maximum(expected + found, 1)))


class ScalarScorer(Scorer):
    """One score a row. Queries with several passages are ranked, labels 0 and 1 without a query are classes, others correlate."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[Any]:
        logits = _output_of_rank(outputs, "logits", 2)
        return [float(logits[row, 0]) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        groups = self._groups()
        ranked = [at for at in groups.values() if len(at) > 1]
        if sum(map(len, ranked)) > len(self.gold) / 2 and all(g.value >= 0 and g.value.is_integer() for g in self.gold):
            return self._ranking([at for at in ranked if any(self.gold[row].value for row in at)])
        if not groups and {g.value for g in self.gold} <= {0.0, 1.0}:
            return (self.mean("accuracy", lambda gold, predicted: (predicted > 0) == bool(gold.value)),)
        return (self._correlation(),)

    def _groups(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for row, graded in enumerate(self.gold):
            if graded.query is not None:
                groups.setdefault(graded.query, []).append(row)
        return groups

    def _ranking(self, groups: Sequence[Sequence[int]]) -> tuple[Metric, ...]:
        """Over queries with two passages or more, of which one or more is relevant."""
        if not groups:
            raise DataError(f"no query has a relevant passage (label above 0), first row {self.rows[0]}: nothing to rank")
        queries = _Queries(self.labels)
        queries.gold = [np.array([self.gold[row].value for row in at]) for at in groups]
        queries.source, queries.artifact = (
            [np.array([side[row] for row in at]) for at in groups] if side else [] for side in (self.source, self.artifact)
        )
        return queries.result()

    def _correlation(self) -> Metric:
        stats = metrics_library("scipy.stats")
        gold = np.array([graded.value for graded in self.gold])
        if len(set(gold)) < 2:
            raise DataError(f"all {len(gold)} labels are {gold[0]:g}: Spearman needs two different ones")
        steady = bool(self.source) and np.array_equal(*(stats.rankdata(side) for side in self._sides()))
        # Behind the rows, one with a low label that the artifact puts high and one that the source puts high: 0.4 of all ranks
        # too far, as two rows drawn at random are apart in the mean square.
        ends = ((0.3, 0.7), (0.7, 0.3)) if self.source else ((0.7, 0.3),)
        gold = _with_quantiles(gold, (0.3, 0.3))
        predicted = [_with_quantiles(np.array(side), end) for side, end in zip(self._sides(), ends, strict=True)]

        def score(which: int, index: np.ndarray) -> float:
            pair = gold[index], predicted[which if self.source else 0][index]
            constant = any(array.min() == array.max() for array in pair)
            return 0.0 if constant else float(stats.spearmanr(*pair).statistic)

        return confidence.all_rows_metric("Spearman", score, len(self.gold), paired=bool(self.source), steady=steady)


class _Queries(Scorer):
    """Relevances and scores [passages] of each query."""

    def result(self) -> tuple[Metric, ...]:
        ndcg = metrics_library("sklearn.metrics").ndcg_score
        return (
            self.mean(f"NDCG@{CUT}", lambda gold, predicted: ndcg([gold], [predicted], k=CUT)),
            self.mean(f"MRR@{CUT}", reciprocal_rank),
        )


def reciprocal_rank(gold: np.ndarray, predicted: np.ndarray) -> float:
    """1 / the rank of the first relevant passage, 0 beyond the tenth (Voorhees, TREC-8 Question Answering Track Report, 1999).

    Of equal scores the relevant one stands last: that an engine tells two passages no longer apart must not be a gain.
    """
    ranks = metrics_library("scipy.stats").rankdata(-predicted, "max")
    first = ranks[gold > 0].min()
    return float(1 / first) if first <= CUT else 0.0


class PairScorer(ScalarScorer):
    """The cosine of the two embeddings of a pair, as the score of `Scored`."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[np.ndarray]:
        vectors = _output_of_rank(outputs, "sentence_embedding", 2)
        return [vectors[row].astype(np.float32) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        halves: list[PairText] = self.gold
        self.source, self.artifact = ([_cosine(*two) for two in _pairs(halves, side)] for side in (self.source, self.artifact))
        self.gold = [first.graded for first, _ in _pairs(halves, halves)]
        return super().result()


def _with_quantiles(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Two of the values behind them, at these shares of their order."""
    return np.concatenate([values, np.quantile(values, shares, method="nearest")])


def _pairs(halves: Sequence[PairText], values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The two values of each pair."""
    waiting: dict[int, Any] = {}
    for half, value in zip(halves, values, strict=False):
        if half.pair in waiting:
            yield waiting.pop(half.pair), value
        else:
            waiting[half.pair] = value


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """To six places: pairs of equal texts all have 1, and must not be ranked by the last bit of a float32."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return round(float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), float(np.finfo(np.float32).tiny)), 6)


class TagScorer(Scorer):
    """F1 of whole entities where the classes are B- and I-, and the accuracy over words."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[tuple[int, ...]]:
        predicted = _output_of_rank(outputs, "logits", 3).argmax(-1)
        return [tuple(int(predicted[row, at]) for at in sample.labels[row].positions) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        words = confidence.ratio_metric("accuracy of words", *self.count_rows(self._words))
        if not any(name.startswith("B-") for name in self.labels.names.values()):
            return (words,)
        return confidence.ratio_metric("F1 of entities", *self.count_rows(self._entities)), words

    def _words(self, gold: Tags, predicted: Sequence[int]) -> tuple[float, float]:
        return float(sum(a == b for a, b in zip(gold.ids, predicted, strict=True))), float(len(gold.ids))

    def _entities(self, gold: Tags, predicted: Sequence[int]) -> tuple[float, float]:
        """F1 over all rows is 2 x right / (found + expected); an entity is right when its class and both its ends are."""
        tags = [[self.labels.names.get(number, f"class {number}") for number in ids] for ids in (gold.ids, predicted)]
        kinds = sorted({tag[2:] for tag in self.labels.names.values() if tag[1:2] == "-"})
        found = (
            metrics_library("nervaluate").Evaluator(tags[:1], tags[1:], tags=kinds, loader="list").evaluate()["overall"]["strict"]
        )
        return 2.0 * found.correct, float(found.actual + found.possible)


class AnswerScorer(Scorer):
    """F1 and exact match of the answer, as SQuAD's evaluation script has them (Rajpurkar et al. 2016, section 6.1)."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[str]:
        missing = {"start_logits", "end_logits"} - set(outputs)
        if missing:
            raise DataError(f"the labels need the outputs start_logits and end_logits; the model has {', '.join(outputs)}")
        return [best_answer(outputs["start_logits"][row], outputs["end_logits"][row], sample.labels[row]) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        return (
            self.mean("F1 of answers", lambda gold, predicted: max(answer_f1(text, predicted) for text in gold.texts or ("",))),
            self.mean("exact match", lambda gold, said: normalise_answer(said) in map(normalise_answer, gold.texts or ("",))),
        )


def best_answer(start: np.ndarray, end: np.ndarray, gold: Answers) -> str:
    """The words of the best span of at most 30 tokens of the context [length]; "" where "no answer" at position 0 scores more
    and the data have questions without an answer (SQuAD 2, Devlin et al. 2019, section 4.3)."""
    positions = np.array([at for at, span in enumerate(gold.spans) if span is not None])
    if not len(positions):
        return ""
    scores = start[positions][:, None].astype(np.float64) + end[positions][None, :]
    steps = positions[None, :] - positions[:, None]
    scores = np.where((steps >= 0) & (steps < LONGEST_ANSWER), scores, -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    if not gold.answerable and start[0] + end[0] > scores[first, last]:
        return ""
    ends = gold.spans[positions[first]], gold.spans[positions[last]]
    assert ends[0] is not None and ends[1] is not None, "these are positions of the context"
    return gold.context[ends[0][0] : ends[1][1]]


def normalise_answer(text: str) -> str:
    """Lower case without punctuation, articles and spare spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_f1(gold: str, predicted: str) -> float:
    """F1 of the bags of words; 1 for two empty answers, 0 for one."""
    expected, found = normalise_answer(gold).split(), normalise_answer(predicted).split()
    if not expected or not found:
        return float(expected == found)
    common = sum((collections.Counter(expected) & collections.Counter(found)).values())
    return 2 * common / (len(expected) + len(found))


class TranscriptScorer(Scorer):
    """Word and character error rate of the greedy transcript, over all rows."""

    def predictions(self, outputs: Arrays, sample: Sample, rows: Sequence[int]) -> list[str]:
        ids = _output_of_rank(outputs, "logits", 3).argmax(-1)
        frames = live_frames(sample, *ids.shape)
        return [self.labels.spell(ctc_collapse(ids[row][: frames[row]], self.labels.blank)) for row in rows]

    def result(self) -> tuple[Metric, ...]:
        jiwer = metrics_library("jiwer")
        return (
            confidence.ratio_metric(
                "WER", *self.count_rows(lambda gold, said: _errors(jiwer.process_words(gold, said))), error=True
            ),
            confidence.ratio_metric(
                "CER", *self.count_rows(lambda gold, said: _errors(jiwer.process_characters(gold, said))), error=True
            ),
        )


def _errors(found: Any) -> tuple[float, float]:
    wrong = found.substitutions + found.deletions
    return float(wrong + found.insertions), float(wrong + found.hits)
