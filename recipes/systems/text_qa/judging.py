"""MRR@10 and NDCG@10 of held-out questions over built artifacts: by recall alone, and by recall and ranker together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

import bertc

from ..running import BASELINE, TRAINED
from .data import Pair, load_pairs

QUESTIONS = 400  # held-out pairs: each passage is a wrong answer of the other questions
CANDIDATES = 8
DEPTH = 10
SHARPNESS = 20.0  # what makes a cosine a logit: 1 / the temperature that it was learned with
BATCH = 32


def judge(artifacts: Mapping[str, Path]) -> dict[str, float]:
    """The metrics of a recall and a ranker; the answer is what both together put first."""
    trained = artifacts[TRAINED]
    pairs = load_pairs(trained / "held_out.jsonl")
    scores = _similarities(bertc.load(artifacts["recall"]), pairs)
    near = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    again = rerank(bertc.load(artifacts["ranker"]), pairs, scores, near)
    baseline = json.loads((trained / "baseline.json").read_text("utf-8"))
    by_recall, by_both = ranks(near), ranks(again)
    return {
        "MRR@10": float(reciprocal(by_both).mean()),
        "NDCG@10": float(_gain(by_both).mean()),
        "answered right": float((by_both == 1).mean()),
        "recall MRR@10": float(reciprocal(by_recall).mean()),
        f"{BASELINE}MRR@10": baseline["MRR@10"],
    }


def rerank(runner: Any, pairs: Sequence[Pair], scores: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The candidates of each question in a better order: by the sum of both log chances over the list."""
    few = near[:, :CANDIDATES]
    asked = [(pairs[at].question, pairs[number].passage) for at, row in enumerate(few) for number in row]
    ranked = _scored(runner, asked).reshape(few.shape)
    both = log_softmax(ranked, axis=1) + log_softmax(SHARPNESS * np.take_along_axis(scores, few, 1), axis=1)
    order = np.argsort(-both, axis=1, kind="stable")
    return np.concatenate([np.take_along_axis(few, order, 1), near[:, CANDIDATES:]], axis=1)


def _scored(runner: Any, asked: Sequence[tuple[str, str]]) -> np.ndarray:
    """A score a pair, computed in the order of lengths: little padding."""
    order = sorted(range(len(asked)), key=lambda at: sum(map(len, asked[at])))
    found = np.zeros(len(asked), np.float32)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        found[chosen] = runner.run(runner.encode([asked[at] for at in chosen]))["logits"][:, 0].astype(np.float32)
    return found


def _similarities(runner: Any, pairs: Sequence[Pair]) -> np.ndarray:
    """[questions, passages]: exact search is a product of two matrices."""
    sides = []
    for name in ("question", "passage"):
        texts = [getattr(pair, name) for pair in pairs]
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        vectors = runner.embed([texts[at] for at in order], normalize=True)
        sides.append(vectors[np.argsort(order)])
    return sides[0] @ sides[1].T


def ranks(near: np.ndarray) -> np.ndarray:
    """The rank of each question's own passage (number i of question i), 0 where it is not among the first DEPTH."""
    hit = near == np.arange(len(near))[:, None]
    return np.where(hit.any(1), hit.argmax(1) + 1, 0)


def reciprocal(found: np.ndarray) -> np.ndarray:
    return np.where(found > 0, 1.0 / np.maximum(found, 1), 0.0)


def _gain(found: np.ndarray) -> np.ndarray:
    """NDCG of a list with one right answer (Järvelin and Kekäläinen 2002): 1 / log2(1 + its rank)."""
    return np.where(found > 0, 1.0 / np.log2(1.0 + np.maximum(found, 1)), 0.0)
