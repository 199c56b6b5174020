"""The network that all candidates share, trained once; candidates judged in it; the best of them trained on, each by itself.

A step trains the largest candidate, the smallest, and some at random, with the mean of their losses: the sandwich rule of Yu and
Huang, "Universally Slimmable Networks and Improved Training Techniques", 2019, section 3.2. Their teacher for the smaller ones is
the largest (section 3.3); here it is the model itself, which the largest begins as. Random ones that a budget allows are drawn
more often: those are who is chosen from (Wang et al., "AttentiveNAS", 2021, section 3.2, draw by their promise).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Callable, Sequence
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
from .rounding import Int8Dynamic
from .space import Candidate, Space
from .supernet import active

WATCHED = 256  # texts that trials are judged on: none of them is learned, and the last judgement sees none of them
RANDOM = 2  # random candidates a step
TRIES = 32  # draws for one that a budget allows
EVALUATIONS = 4
Allowed = Callable[[Candidate], bool]


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


def value(net: Net, room: Room, candidate: Candidate, target: str) -> float:
    """How good a part of the trained network is, without training: more is better (of sentence embeddings the mean cosine)."""
    with active(net, candidate), _rounded(candidate.precision, target):
        return held_out_value(room.objective(net, candidate.layers), room.watched)


def own_value(net: Net, room: Room, candidate: Candidate, target: str) -> float:
    """The same of a candidate that was cut out."""
    with _rounded(candidate.precision, target):
        return held_out_value(room.objective(net, candidate.layers), room.watched)


def _rounded(precision: str, target: str) -> contextlib.AbstractContextManager[Any]:
    return Int8Dynamic(target) if precision == "int8-dynamic" else contextlib.nullcontext()


def train_supernet(
    net: Net, room: Room, space: Space, allowed: Allowed, facts: Any, folder: Path, resume: bool, log: Progress
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
        for name, candidate in picked(space, allowed, settings.seed, step).items():
            with active(net, candidate):
                loss, _ = room.objective(net, candidate.layers)(room.learned, rows, step)
            losses.append(loss)
            parts[name] = float(loss.detach())
        total = functools.reduce(operator.add, losses)
        return total / len(losses), parts

    def judge() -> float:
        return float(np.mean([value(net, room, each, "") for each in judged]))

    judged = list(picked(space, allowed, settings.seed, -1).values())[1:]
    module = nn.ModuleDict({"student": net.module})
    loop = Loop(module, loss_of, judge, settings, settings.steps or 1, folder, _fingerprint(room, facts), room.teachers.autocast)
    found = loop.run(log, resume=resume)
    room.teachers.check_untouched()
    return found


def picked(space: Space, allowed: Allowed, seed: int, step: int) -> dict[str, Candidate]:
    """Who learns in a step: the sandwich. Of a pair of seed and step it is always the same."""
    random = np.random.default_rng((seed, step + 1))
    found = {"largest": space.largest(), "smallest": space.smallest(space.precisions[0])}
    for at in range(RANDOM):
        drawn = [space.drawn(random) for _ in range(TRIES)]
        found[f"random {at + 1}"] = next(filter(allowed, drawn), drawn[0])
    return found


def _fingerprint(room: Room, facts: Any) -> str:
    known = [facts, room.settings.to_json(), room.weights, room.teachers.hashes, room.texts.sha256()]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def finish(net: Net, room: Room, candidate: Candidate, target: str, steps: int, log: Progress) -> dict[str, Any]:
    """Train a candidate that was cut out, in place; it stays as it was where that made it worse. Returns facts for the report."""
    before = own_value(net, room, candidate, target)
    if not steps:
        return {"before": before, "after": before, "kept": False, "training": None}
    state = {name: each.detach().clone() for name, each in net.module.state_dict().items()}
    net.module.requires_grad_(True)
    settings = dataclasses.replace(room.settings, steps=steps)
    objective = room.objective(net, candidate.layers)
    training = train(objective, room.learned, room.watched, room.texts, settings, None, False, log)
    after = own_value(net, room, candidate, target)
    kept = after > before
    if not kept:
        net.module.load_state_dict(state)
    return {"before": before, "after": after, "kept": kept, "training": training.to_json()}
