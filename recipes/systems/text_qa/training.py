"""Recall: MiniLM of 6 layers distilled to 3. Ranker: a cross-encoder that starts as the recall's layers and has its teacher.

The ranker sees a question with its own passage and with those that the teacher holds closest. It learns which is its own
(Nogueira and Cho 2019, "Passage Re-ranking with BERT", section 2.2) and the teacher's similarities over the list (the soft
targets of Hinton et al. 2015, section 2, over candidates in the place of classes).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertc import distill
from bertc.core import Progress, write_json
from bertc.recipe import resolve
from bertc.source import open_trainable, quiet

from ..running import Budget, Module
from .data import Pair, read_pairs, write_pairs
from .judging import DEPTH, QUESTIONS, ranks, reciprocal

LAYERS = 3
CALIBRATED = 300  # pairs, and texts, that calibrate int8 and are verified on
CANDIDATES = 8  # a question's own passage and the 7 that its teacher holds closest
AT_ONCE = 4  # questions in a step
TEMPERATURE = 0.05  # of cosines, as in losses.similarity
LENGTH = 128  # tokens of a pair, as in system.toml
TEXTS_A_SECOND, STEPS_A_SECOND = 60, 0.9  # of one core with bfloat16; half of the budget each


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is learned from, as the seconds allow."""

    pairs: int
    texts: int
    steps: int
    layers: int = LAYERS

    @classmethod
    def of(cls, budget: Budget) -> Sizes:
        if budget.quick:
            return cls(400, 300, 12, 1)
        half = budget.seconds / 2
        return cls(6000, int(half * TEXTS_A_SECOND * 0.8), int(half * STEPS_A_SECOND))


def train(folder: Path, budget: Budget) -> list[Module]:
    """Write the folders recall and ranker, and the held-out pairs that judge them."""
    sizes = Sizes.of(budget)
    learned, held_out = read_pairs(sizes.pairs)
    judged = held_out[: QUESTIONS if not budget.quick else 60]
    write_pairs(folder / "held_out.jsonl", judged)
    write_pairs(folder / "pairs.jsonl", learned[:CALIBRATED])
    texts = [text for pair in learned for text in (pair.question, pair.passage)][: sizes.texts]
    for name, lines in (("texts.txt", texts), ("few_texts.txt", texts[:CALIBRATED])):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "baseline.json", {"MRR@10": _untrained(judged, sizes.layers)})
    recall = _recall(folder, sizes, budget)
    ranker = _ranker(folder, recall, learned, held_out[len(judged) :], sizes, budget)
    return [
        Module("recall", recall, folder / "few_texts.txt", f"bert:{sizes.layers}"),
        Module("ranker", ranker, folder / "pairs.jsonl", f"bert:{sizes.layers}"),
    ]


def _recall(folder: Path, sizes: Sizes, budget: Budget) -> Path:
    settings = distill.Settings(layers=sizes.layers, max_length=64, seed=budget.seed)
    request = distill.Request(("minilm",), folder / "texts.txt")
    return distill.distill(request, folder / "recall", settings).path


def _untrained(pairs: list[Pair], layers: int) -> float:
    """The same layers of MiniLM without any training."""
    teacher = distill.net_of(open_trainable(resolve("minilm")[0].source), 64)
    depth = len(teacher.layers)
    cut = distill.keep_layers(teacher, [(at + 1) * depth // layers - 1 for at in range(layers)])
    questions, passages = (_vectors([getattr(pair, name) for pair in pairs], cut) for name in ("question", "passage"))
    near = np.argsort(-(questions @ passages.T), axis=1, kind="stable")[:, :DEPTH]
    return float(reciprocal(ranks(near)).mean())


def _ranker(folder: Path, recall: Path, learned: list[Pair], others: list[Pair], sizes: Sizes, budget: Budget) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    teacher = distill.net_of(open_trainable(resolve("minilm")[0].source), 64)
    tokenizer = AutoTokenizer.from_pretrained(recall)
    torch.manual_seed(budget.seed)
    with quiet():  # transformers tells at length that the head is missing: it is learned here
        model = AutoModelForSequenceClassification.from_pretrained(recall, num_labels=1, attn_implementation="eager")
    few = min(len(learned), sizes.steps * AT_ONCE)
    lists = _Lists.of(learned[:few], teacher)
    watched = _Lists.of(others[: 20 if budget.quick else 100], teacher)
    order = np.random.default_rng(budget.seed).permutation(few)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = order[np.arange(step * AT_ONCE, (step + 1) * AT_ONCE) % few]
        return _loss(lists, chosen, model, tokenizer), {}

    @torch.no_grad()
    def value() -> float:
        rows = np.arange(len(watched.own))
        return -float(np.mean([float(_loss(watched, rows[at : at + AT_ONCE], model, tokenizer)) for at in rows[::AT_ONCE]]))

    settings = distill.Settings(learning_rate=2e-4, seed=budget.seed, evaluations=5)
    context, _ = distill.autocast_of("auto", torch.device("cpu"))
    distill.Loop(model, loss_of, value, settings, sizes.steps, None, autocast=context).run(Progress())
    out = folder / "ranker"
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


@dataclasses.dataclass(frozen=True)
class _Lists:
    """Of each question its candidates, its own passage first, and the teacher's similarity to each."""

    pairs: list[Pair]
    own: np.ndarray  # [questions, candidates] numbers of passages
    near: np.ndarray  # [questions, candidates]

    @classmethod
    def of(cls, pairs: list[Pair], teacher: distill.Net) -> _Lists:
        questions, passages = (_vectors([getattr(p, name) for p in pairs], teacher) for name in ("question", "passage"))
        scores = questions @ passages.T
        raised = scores + np.where(np.eye(len(pairs), dtype=bool), 9.0, 0.0)  # its own comes first
        own = np.argsort(-raised, axis=1, kind="stable")[:, :CANDIDATES]
        return cls(pairs, own, np.take_along_axis(scores, own, 1))


@torch.no_grad()
def _vectors(texts: list[str], net: distill.Net) -> np.ndarray:
    net.module.eval()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found: dict[int, np.ndarray] = {}
    for at in range(0, len(order), 64):
        chosen = order[at : at + 64]
        feeds = {name: torch.from_numpy(each) for name, each in net.encoder.encode([texts[i] for i in chosen]).items()}
        with distill.autocast_of("auto", torch.device("cpu"))[0]():
            found |= dict(zip(chosen, net.run(feeds).output.float().numpy(), strict=True))
    return np.stack([found[at] for at in range(len(texts))])


def _loss(lists: _Lists, chosen: np.ndarray, model: Any, tokenizer: Any) -> Tensor:
    asked = [lists.pairs[at].question for at in chosen for _ in lists.own[at]]
    given = [lists.pairs[number].passage for at in chosen for number in lists.own[at]]
    feeds = tokenizer(asked, given, truncation="longest_first", max_length=LENGTH, padding=True, return_tensors="pt")
    scores = model(**feeds).logits.float().view(len(chosen), -1)
    soft = torch.softmax(torch.from_numpy(lists.near[chosen]).float() / TEMPERATURE, -1)
    right = torch.zeros(len(chosen), dtype=torch.int64)
    return F.cross_entropy(scores, right) + 0.5 * F.cross_entropy(scores, soft)
