"""The network that all candidates share, trained once; candidates judged in it; the best of them trained on, each by itself.

A step trains a few candidates with the mean of their losses: those that the budget allows and that use most of it, out of some
drawn at random, because it is among them that the best is found (Wang et al., "AttentiveNAS", 2021, section 3.2, draw by their
promise), and one that is merely allowed. The sandwich of Yu and Huang ("Universally Slimmable Networks and Improved Training
Techniques", 2019, section 3.2) adds the largest and the smallest of all; under a budget neither is a candidate of use: the
largest takes more time than all others, and the smallest pulls at weights that all share. The teacher of all is the model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..core import DataError, Progress
from ..distill import (
    Lesson,
    Loop,
    Net,
    Objective,
    Settings,
    Teachers,
    Texts,
    Training,
    batches_of,
    held_out_value,
    lesson_of,
    losses_of,
    prepare,
    train,
)  # fmt: skip
from .request import Request
from .rounding import rounded
from .space import Candidate, Space
from .supernet import active

WATCHED = 256  # texts that trials are judged on: none of them is learned, and the last judgement sees none of them
TRAINED, MODEL = "trained", "model"  # the network that all share, and the model as it was, sorted
NEAR = 2  # candidates of a step that use most of the budget
TRIES = 32  # draws for each
EVALUATIONS = 4
Spent = Callable[[Candidate], float]  # the share of the budget that a candidate uses; above 1 it is not allowed


@dataclasses.dataclass
class Room:
    """Texts that are learned and watched, with what the teacher gives for them, encoded once for everything that learns."""

    teachers: Teachers
    texts: Texts
    learned: Lesson
    watched: Lesson
    weights: dict[str, float]
    settings: Settings

    def objective(self, net: Net, layers: Sequence[int]) -> Objective:
        settings = self.settings
        return Objective(net, self.teachers, layers, self.weights, settings.temperature, seed=settings.seed)


def room_of(original: Net, net: Net, teachers: Teachers, texts: Texts, request: Request, log: Progress) -> Room:
    """Sets some texts apart to watch, and asks the teacher for all of them."""
    count = min(WATCHED, len(texts.learned) // 4)
    if count < 2:
        raise DataError(f"{request.data} has {len(texts.learned)} texts to learn from; a search needs 8, thousands to be of use")
    split = Texts(texts.learned[count:], texts.learned[:count])
    settings = Settings(
        steps=request.steps, batch=request.batch, max_length=request.max_length, learning_rate=request.learning_rate,
        seed=request.seed, evaluations=EVALUATIONS, patience=EVALUATIONS, device="cpu",
    )  # fmt: skip
    weights = losses_of(settings, original.task, labelled=False, reranker=False)
    prepare(teachers, net, settings)
    learned = lesson_of(original, teachers, split.learned, log, "learned texts", labelled=False, pairs=False)
    watched = lesson_of(original, teachers, split.held_out, log, "watched texts", labelled=False, pairs=False)
    return Room(teachers, split, learned, watched, weights, settings)


def better(nets: Mapping[str, Net], room: Room, candidate: Candidate, target: str) -> tuple[float, str]:
    """How good a candidate is in the network in which it is better, and the name of that."""
    return max((value(net, room, candidate, target), name) for name, net in nets.items())


def value(net: Net, room: Room, candidate: Candidate, target: str) -> float:
    """How good a part of the trained network is, without training: more is better (of sentence embeddings the mean cosine)."""
    with active(net, candidate):
        return own_value(net, room, candidate, target)


def own_value(net: Net, room: Room, candidate: Candidate, target: str) -> float:
    """The same of a candidate that was cut out."""
    return held_out_value(_objective(net, room, candidate, target), room.watched)


def _objective(net: Net, room: Room, candidate: Candidate, target: str) -> Objective:
    return room.objective(rounded(net, candidate.precision, target), candidate.layers)


def train_supernet(
    net: Net, room: Room, space: Space, spent: Spent, facts: Any, folder: Path, resume: bool, log: Progress
) -> Training:  # fmt: skip
    """Train in place. `facts` are what, besides texts and settings, the training depends on: a checkpoint holds for them."""
    settings, lengths = room.settings, room.learned.lengths

    @functools.lru_cache(maxsize=1)
    def epoch(number: int) -> list[np.ndarray]:
        return batches_of(lengths, settings.batch, settings.seed, number)

    each = len(epoch(0))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = epoch(step // each)[step % each]
        losses: list[Tensor] = []
        parts: dict[str, float] = {}
        for name, candidate in picked(space, spent, settings.seed, step).items():
            with active(net, candidate):
                loss, _ = room.objective(net, candidate.layers)(room.learned, rows, step)
            losses.append(loss)
            parts[name] = float(loss.detach())
        total = functools.reduce(operator.add, losses)
        return total / len(losses), parts

    def judge() -> float:
        return float(np.mean([value(net, room, each, "") for each in judged]))

    judged = list(picked(space, spent, settings.seed, -1).values())
    module = nn.ModuleDict({"student": net.module})
    loop = Loop(module, loss_of, judge, settings, settings.steps or 1, folder, _fingerprint(room, facts), room.teachers.autocast)
    found = loop.run(log, resume=resume)
    room.teachers.check_untouched()
    return found


def picked(space: Space, spent: Spent, seed: int, step: int) -> dict[str, Candidate]:
    """Who learns in a step. Of a pair of seed and step it is always the same."""
    random = np.random.default_rng((seed, step + 1))
    found = {}
    for at in range(NEAR):
        drawn = [space.drawn(random) for _ in range(TRIES)]
        fitting = [each for each in drawn if spent(each) <= 1]
        found[f"near the limit {at + 1}"] = max(fitting, key=spent) if fitting else min(drawn, key=spent)
    drawn = [space.drawn(random) for _ in range(TRIES)]
    return {**found, "below it": next((each for each in drawn if spent(each) <= 1), min(drawn, key=spent))}


def _fingerprint(room: Room, facts: Any) -> str:
    known = [facts, room.settings.to_json(), room.weights, room.teachers.hashes, room.texts.sha256()]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def finish(
    net: Net, room: Room, candidate: Candidate, target: str, steps: int, log: Progress, *, turn: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Train a candidate that was cut out, in place, rounded as its precision rounds; it stays as it was where that made it worse.

    Each `turn` reads the texts in another order. Returns facts for the report.
    """
    before = own_value(net, room, candidate, target)
    if not steps:
        return {"before": before, "after": before, "kept": False, "training": None}
    state = {name: each.detach().clone() for name, each in net.module.state_dict().items()}
    net.module.requires_grad_(True)
    settings = dataclasses.replace(room.settings, steps=steps, seed=room.settings.seed + turn)
    objective = _objective(net, room, candidate, target)
    training = train(objective, room.learned, room.watched, room.texts, settings, None, False, log)
    after = own_value(net, room, candidate, target)
    kept = after > before
    if not kept:
        net.module.load_state_dict(state)
    return {"before": before, "after": after, "kept": kept, "training": training.to_json()}
