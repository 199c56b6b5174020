"""A student taught: texts encoded, the teachers' answers kept where that saves time, the loop run. `compress` repairs with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core import InputError, Progress, counted, silent
from ..data import Labels
from . import judge, losses
from .loop import Loop, Training, autocast_of, device_of
from .nets import Net, tensors
from .objective import CACHED, Lesson, Objective, mask_words, mean_vectors
from .settings import Settings, losses_of
from .teachers import Teachers, mixed_logits, outputs_of
from .texts import Example, Texts, batches_of, encode

WATCHED = 256  # held-out texts that are looked at while it learns
FIXED = 2**31  # the step whose masks the held-out texts have


@dataclasses.dataclass
class Taught:
    """What `teach` did, and the held-out texts as it encoded them."""

    training: Training
    objective: Objective
    held_out: Lesson
    notes: tuple[str, ...] = ()


def teach(
    student: Net,
    teachers: Teachers,
    layers: Sequence[int],
    texts: Texts,
    settings: Settings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    log: Progress | None = None,
) -> Taught:
    """Train a student in place. `layers` are the teacher's layers that its own stand for.

    The teachers are frozen, and shown at the end to be what they were (CheckFailed).
    """
    log = log or Progress()
    labelled = any(each.row is not None and each.row.label is not None for each in texts.learned)
    pairs = bool(teachers.rerankers)
    weights = losses_of(settings, student.task, labelled=labelled, reranker=pairs)
    _check_pairs(texts, pairs)
    prepare(teachers, student, settings)
    if labelled:
        check_labels(student)
    objective = Objective(
        student, teachers, layers, weights, settings.temperature, seed=settings.seed, mask_share=settings.mask_share
    )
    objective.project.to(teachers.device)
    learned = lesson_of(student, teachers, texts.learned, log, "learned texts", labelled=labelled, pairs=pairs)
    held_out = lesson_of(student, teachers, texts.held_out, log, "held-out texts", labelled=labelled, pairs=pairs)
    notes = _cut_note(learned, student)
    training = train(objective, learned, held_out, texts, settings, folder, resume, log)
    teachers.check_untouched()
    return Taught(training, objective, held_out, notes)


def prepare(teachers: Teachers, student: Net, settings: Settings) -> None:
    """Everything on its device, the teachers frozen. On a CPU attention stays as it was loaded: there the backward pass of
    PyTorch's own takes three times as long in bfloat16."""
    device = device_of(settings.device)
    teachers.device, teachers.autocast = device, autocast_of(settings.precision, device)[0]
    for net in (*teachers.nets, *teachers.rerankers, student) if device.type == "cuda" else ():
        faster = getattr(net.model, "set_attn_implementation", None)
        if faster is not None and getattr(net.model, "_supports_sdpa", False):
            faster("sdpa")
    student.module.requires_grad_(True).to(device)
    teachers.freeze()


def lesson_of(
    student: Net, teachers: Teachers, examples: Sequence[Example], log: Progress, name: str, *, labelled: bool, pairs: bool
) -> Lesson:
    """Texts as the student takes them, with the teachers' vectors of each where they give one a text."""
    flat = [Example(text) for each in examples for text in each.text] if pairs else examples
    labels = Labels.from_assets(student.task, tuple(student.origin.assets.values())) if labelled else None
    if labels is not None and labels.classes is None:
        labels = dataclasses.replace(labels, classes=int(student.model.config.num_labels))
    with log.stage(f"tokens of {name}") as advance:
        encoded = encode(flat, student.encoder, advance, labels)
    if student.task not in CACHED:
        return Lesson(examples, encoded, pairs=pairs)
    with log.stage(f"teacher on {name}") as advance:
        return Lesson(examples, encoded, teachers.vectors(flat, encoded, advance), pairs)


def _check_pairs(texts: Texts, wanted: bool) -> None:
    whole = all(isinstance(each.text, tuple) for each in (*texts.learned, *texts.held_out))
    if wanted and not whole:
        raise InputError("a reranker teaches by pairs: each row of --data needs text (the query) and text_pair (its passage)")


def check_labels(student: Net) -> None:
    if student.task not in ("sequence-classification", "token-classification"):
        raise InputError(f"--labels is for teachers that classify texts or tokens; this one is for {student.task}")


def _cut_note(lesson: Lesson, student: Net) -> tuple[str, ...]:
    cut = lesson.encoded.cut
    total = len(lesson.encoded.rows)
    return (f"{counted(cut, 'text')} of {total} cut at {student.encoder.max_length} tokens (--max-length)",) if cut else ()


def train(
    objective: Objective,
    learned: Lesson,
    held_out: Lesson,
    texts: Texts,
    settings: Settings,
    folder: Path | None,
    resume: bool,
    log: Progress,
) -> Training:
    """The loop over lessons that are encoded already, so that several students of one teacher share them."""
    lengths = learned.lengths

    @functools.lru_cache(maxsize=1)
    def epoch(number: int) -> list[np.ndarray]:
        return batches_of(lengths, settings.batch, settings.seed, number)

    each = len(epoch(0))
    steps = settings.steps or max(1, math.ceil(settings.epochs * each))
    module = nn.ModuleDict({"student": objective.student.module, "project": objective.project})
    loop = Loop(
        module,
        lambda step: objective(learned, epoch(step // each)[step % each], step),
        lambda: held_out_value(objective, held_out),
        settings,
        steps,
        folder,
        fingerprint(objective, texts, settings),
        objective.teachers.autocast,
    )
    log.say(
        f"{counted(len(learned), 'text')}, {each} batches of {settings.batch}, {counted(steps, 'step')}; "
        f"losses: {', '.join(f'{name} {weight:g}' for name, weight in objective.weights.items())}"
    )
    found = loop.run(log, resume=resume)
    if found.stopped:
        log.note(found.stopped)
    return found


def fingerprint(objective: Objective, texts: Texts, settings: Settings) -> str:
    """What a checkpoint is of: teachers, losses, texts and settings; not what changes no number of it."""
    free = ("checkpoint_seconds", "device")
    chosen = {name: value for name, value in settings.to_json().items() if name not in free}
    facts = [chosen, objective.weights, objective.layers, objective.teachers.hashes, objective.teachers.shares, texts.sha256()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def held_out_value(objective: Objective, held_out: Lesson) -> float:
    """What decides which state is kept, more is better: the mean cosine to the teachers' vectors, else the loss below zero."""
    few = np.arange(min(WATCHED, len(held_out)))
    if "cosine" in objective.weights and not held_out.pairs:
        part = Lesson(held_out.examples, dataclasses.replace(held_out.encoded, rows=held_out.encoded.rows[: len(few)]))
        found = outputs_of(objective.student, part.encoded, objective.teachers.device, objective.teachers.autocast, silent)
        targets = [torch.from_numpy(each[: len(few)]) for each in held_out.targets]
        return 1 - float(losses.cosine(torch.from_numpy(found), mean_vectors(targets, objective.teachers.shares)))
    order = few[np.argsort(held_out.lengths[few], kind="stable")]
    total = 0.0
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        with objective.teachers.autocast():
            total += float(objective(held_out, chosen, FIXED + start)[0]) * len(chosen)
    return -total / len(order)


# ---- judging ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def quality(net: Net, teachers: Teachers, held_out: Lesson, exact: Sequence[np.ndarray]) -> tuple[judge.Measure, ...]:
    """A student against its teachers on held-out texts, in float32. `exact` are the teachers' vectors, where they give some."""
    if net.task == "sentence-embedding":
        target = mean_vectors([torch.from_numpy(each) for each in exact], teachers.shares).numpy()
        return judge.of_vectors(_exact(net, held_out, teachers), target)
    if net.task == "sequence-classification":
        target = _mixed(exact, teachers.shares)
        return judge.of_classes(_exact(net, held_out, teachers), target)
    return by_token(net, teachers, held_out)


def _exact(net: Net, lesson: Lesson, teachers: Teachers) -> np.ndarray:
    return outputs_of(net, lesson.encoded, teachers.device, _plainly, silent)


def _plainly() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def _mixed(exact: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return mixed_logits([torch.from_numpy(each) for each in exact], weights).numpy()


def by_token(net: Net, teachers: Teachers, lesson: Lesson) -> tuple[judge.Measure, ...]:
    """By text: the share of tokens of the same class (of a masked LM: of masked words), answers of the same span, or the mean
    cosine of states."""
    values: list[float] = []
    for start in range(0, len(lesson), 64):
        chosen = np.arange(start, min(start + 64, len(lesson)))
        feeds = tensors(lesson.encoded.batch(chosen), teachers.device)
        mask = feeds["attention_mask"].bool()
        if net.task == "masked-lm":
            feeds["input_ids"], words = mask_words(feeds, net.encoder, 0.15, (0, FIXED + start))
            mask = words != losses.IGNORED
        one, other = net.run(feeds).output, teachers.see(feeds, (), ()).output
        for each in one if isinstance(one, tuple) else (one,):
            judge.require_finite(each.float().cpu().flatten(1).numpy())
        values += _by_text(net.task, one, other, mask)
    names = {"question-answering": "same answer", "features": "mean cosine of tokens", "token-embedding": "mean cosine of tokens"}
    return (judge.mean_of(names.get(net.task, "same class of tokens"), np.array(values)),)


def _by_text(task: str, one: object, other: object, mask: torch.Tensor) -> list[float]:
    if task == "question-answering":
        both = [[each.float().masked_fill(~mask, -1e4).argmax(1) for each in found] for found in (one, other)]  # type: ignore[attr-defined]
        return ((both[0][0] == both[1][0]) & (both[0][1] == both[1][1])).float().tolist()
    first, second = (each[0] if isinstance(each, tuple) else each for each in (one, other))
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    if task in ("features", "token-embedding"):
        same = torch.cosine_similarity(first.float(), second.float(), dim=-1)
    else:
        same = (first.argmax(-1) == second.argmax(-1)).float()
    kept = mask.any(1)
    return ((same * mask).sum(1)[kept] / mask.sum(1)[kept]).tolist()


def ranks_of(net: Net, pairs: Sequence[tuple[str, str]], device: torch.device) -> np.ndarray:
    """The reciprocal rank [pairs] of each query's passage among all different ones, by vectors in float32."""
    places = judge.different(passage for _, passage in pairs)
    both = []
    for texts in ([pair[0] for pair in pairs], places):
        encoded = encode([Example(text) for text in texts], net.encoder, silent)
        both.append(outputs_of(net, encoded, device, contextlib.nullcontext, silent))
    queries, passages = both
    return judge.reciprocal_ranks(queries, passages, np.array([places[passage] for _, passage in pairs]))


def labelled_share(net: Net, lesson: Lesson, teachers: Teachers) -> np.ndarray | None:
    """1 for each held-out row whose class is the label's, 0 for others; None without labelled rows, or for scores."""
    known = [at for at, each in enumerate(lesson.encoded.labels) if isinstance(each, int)]
    if not known or net.task != "sequence-classification":
        return None
    found = _exact(net, lesson, teachers).argmax(1)
    return np.array([float(found[at] == lesson.encoded.labels[at]) for at in known])
