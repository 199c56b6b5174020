"""bertc distill, in order: read texts, open teachers, cut a student, teach it, judge it, write it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..artifact import staging
from ..core import VERSION, ArtifactError, DataError, Progress, counted, hash_file, silent, versions
from ..data import tables
from ..recipe import resolve, with_permissions
from ..source import SourceOptions, open_trainable
from . import checkpoints, judge, losses
from .nets import Net, net_of, tensors
from .objective import CACHED
from .settings import Settings, check
from .student import Cut, cut
from .teachers import Teachers, outputs_of, teachers_of
from .teaching import Taught, labelled_share, quality, ranks_of, teach
from .texts import Example, Texts, encode, read_texts
from .writing import write_student

if TYPE_CHECKING:
    from ..verification import Metric

SCORED = 256  # held-out texts by which a search compares students without training
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What is distilled from what: references of teachers, files of texts, and where the student goes."""

    teachers: tuple[str, ...]
    data: Path | None = None
    labels: Path | None = None
    held_out: Path | None = None
    pairs: Path | None = None
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A student on disk, and what its distillation.json says."""

    path: Path
    document: dict[str, Any]


def distill(
    request: Request,
    out: Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Distilled:
    """Distil a student and write it to `out`. While it learns, its checkpoint lies in a folder beside it, `OUT.training`.

    Raises InputError or DataError for what cannot be distilled so, CheckFailed for a training that diverged or a teacher that
    changed; `out` is then as it was before. KeyboardInterrupt says how to go on.
    """
    log, settings, began = progress or Progress(), settings or Settings(), time.monotonic()
    check(settings)
    if request.data is None and request.labels is None:
        raise DataError("nothing to learn from: give --data FILE (texts), --labels FILE (labelled rows), or both")
    training = out.with_name(out.name + ".training")
    _check_training(training, force, resume)
    with staging(out, force) as stage:
        texts, teachers = _open(request, settings, log)
        made = cut(teachers.first, settings, lambda net: _score(net, teachers, texts.held_out), log)
        untrained = _state_of(made.student)
        taught = teach(made.student, teachers, made.layers, texts, settings, folder=training, resume=resume, log=log)
        teachers.autocast = contextlib.nullcontext  # judged in float32
        with log.stage("judge"):
            found = _judged(request, made.student, untrained, teachers, taught, texts, log)
        document = _document(request, settings, teachers, made, taught, texts, found, log, time.monotonic() - began)
        notes = write_student(made.student, stage, document)
    shutil.rmtree(training, ignore_errors=True)
    for note in notes:
        log.note(note)
    return Distilled(out, document)


def _check_training(folder: Path, force: bool, resume: bool) -> None:
    there = (folder / checkpoints.NAME).is_file()
    if resume and not there:
        raise ArtifactError(f"--resume: there is no {folder / checkpoints.NAME}; leave --resume out to begin")
    if there and not resume and not force:
        raise ArtifactError(
            f"{folder} has the checkpoint of a training that did not end: go on with it (--resume), or begin again (--force)"
        )


def _open(request: Request, settings: Settings, log: Progress) -> tuple[Texts, Teachers]:
    # With a reranker a row is a pair, and so it is for a model that takes pairs: known when the teachers are open.
    nets = []
    with log.stage("open teachers"):
        for reference in request.teachers:
            found, _ = resolve(reference)
            options = with_permissions(request.options, found)
            nets.append(net_of(open_trainable(found.source, options), settings.max_length))
    teachers = teachers_of(nets, settings.teacher_weights)
    with log.stage("read texts"):
        whole = bool(teachers.rerankers) or teachers.first.task not in ("sentence-embedding", "token-embedding")
        texts = read_texts(request.data, request.labels, settings.held_out, request.held_out, pairs=whole)
    for note in (*texts.notes, *dict.fromkeys(note for net in nets for note in net.origin.notes)):
        log.note(note)
    return texts, teachers


def _state_of(net: Net) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().cpu() for name, value in net.module.state_dict().items()}


@torch.no_grad()
def _score(net: Net, teachers: Teachers, held_out: Sequence[Example]) -> float:
    """How close a student without training is: the mean cosine of its vectors, or of what its last layer gives."""
    few = held_out[:SCORED]
    encoded = encode(few, net.encoder, silent)
    device = torch.device("cpu")
    if net.task == "sentence-embedding":
        one, other = (outputs_of(each, encoded, device, contextlib.nullcontext, silent) for each in (net, teachers.first))
        return 1 - float(losses.cosine(torch.from_numpy(one), torch.from_numpy(other)))

    order, total = np.argsort(encoded.lengths, kind="stable"), 0.0
    for start in range(0, len(order), 64):
        feeds = tensors(encoded.batch(order[start : start + 64]), device)
        mask = feeds["attention_mask"].float()
        states = [each.run(feeds, (len(each.layers) - 1,)).hidden[len(each.layers) - 1] for each in (net, teachers.first)]
        total -= float(losses.tokens(states[0], states[1], mask)) * len(mask)
    return total / len(order)


# ---- judging ---------------------------------------------------------------------------------------------------------


def _judged(
    request: Request,
    student: Net,
    untrained: dict[str, torch.Tensor],
    teachers: Teachers,
    taught: Taught,
    texts: Texts,
    log: Progress,
) -> dict[str, Any]:
    """Measures of the student and of what it was before; metrics of the task where there are labels or pairs."""
    held_out = taught.held_out
    flat = [Example(text) for each in held_out.examples for text in each.text] if held_out.pairs else held_out.examples
    cached = student.task in CACHED
    exact = teachers.vectors(flat, held_out.encoded, silent, exact=True) if cached else []
    pairs = _pairs(request, texts, log)
    trained = _state_of(student)
    made: dict[str, Any] = {"tasks": []}
    rows: dict[str, list[Any]] = {}
    for name, state in (("untrained", untrained), ("student", trained)):
        student.module.load_state_dict(state)
        made[name] = [each.to_json() for each in quality(student, teachers, held_out, exact)]
        rows[name] = [labelled_share(student, held_out, teachers), _ranks(student, pairs, teachers)]
    rows["teacher"] = [labelled_share(teachers.first, held_out, teachers), _ranks(teachers.first, pairs, teachers)]
    for at, name in enumerate(("accuracy on labels", f"MRR@{judge.DEPTH}")):
        if rows["student"][at] is not None:
            metric = judge.drop_of(name, rows["student"][at], rows["teacher"][at])
            made["tasks"].append(_task_row(metric, float(rows["untrained"][at].mean())))
    return made


def _task_row(metric: Metric, untrained: float) -> dict[str, Any]:
    facts = {"name": metric.name, "teacher": metric.source, "student": metric.artifact, "drop": metric.drop}
    return {**facts, "low": metric.low, "high": metric.high, "rows": metric.rows, "untrained": untrained}


def _pairs(request: Request, texts: Texts, log: Progress) -> list[tuple[str, str]]:
    """Pairs (query, passage) to rank by, without those of which a text was learned from."""
    if request.pairs is None:
        return []
    found = [row.text for row in tables.read_table(request.pairs).rows if isinstance(row.text, tuple)]
    if not found:
        raise DataError(f"{request.pairs} has no pairs; --pairs takes rows of text (a query) and text_pair (its passage)")
    known = {part for each in texts.learned for part in ((each.text,) if isinstance(each.text, str) else each.text)}
    kept = [pair for pair in dict.fromkeys(found) if not known & set(pair)]
    if len(kept) < len(found):
        log.note(f"{counted(len(found) - len(kept), 'pair')} of {len(found)} not ranked: given twice, or learned from")
    if len(kept) < 2:
        raise DataError(f"{request.pairs} has {counted(len(kept), 'pair')} that nothing was learned from; 2 or more are needed")
    return kept


def _ranks(net: Net, pairs: Sequence[tuple[str, str]], teachers: Teachers) -> np.ndarray | None:
    return ranks_of(net, pairs, teachers.device) if pairs and net.task == "sentence-embedding" else None


# ---- what is written -------------------------------------------------------------------------------------------------


def _document(
    request: Request,
    settings: Settings,
    teachers: Teachers,
    made: Cut,
    taught: Taught,
    texts: Texts,
    found: dict[str, Any],
    log: Progress,
    seconds: float,
) -> dict[str, Any]:
    nets = (*teachers.nets, *teachers.rerankers)
    parts = {name: getattr(request, name) for name in ("data", "labels", "held_out", "pairs")}
    pairs = zip(found["untrained"], found["student"], strict=True)
    summary = "; ".join(f"{one['name']} {one['value']:.4f} untrained, {two['value']:.4f} trained" for one, two in pairs)
    tasks = [f"{each['name']}: teacher {each['teacher']:.4f}, student {each['student']:.4f}" for each in found["tasks"]]
    cosine = "cosine" in taught.objective.weights and not taught.held_out.pairs
    return {
        "format": FORMAT,
        "bertc": VERSION,
        "summary": "; ".join([summary, *tasks]),
        "task": made.student.task,
        "teachers": [
            {"reference": str(ref), "sha256": net.origin.sha256} for ref, net in zip(request.teachers, nets, strict=True)
        ],
        "shares": list(teachers.shares),
        "layers": list(made.layers),
        "shape": {"teacher": shape_of(teachers.first), "student": shape_of(made.student)},
        "losses": taught.objective.weights,
        "settings": settings.to_json(),
        "texts": {"learned": len(texts.learned), "held_out": len(texts.held_out), "sha256": texts.sha256()},
        "files": {name: {"name": path.name, "sha256": hash_file(path)} for name, path in parts.items() if path is not None},
        "quality": found,
        "watched": "mean cosine to the teachers" if cosine else "held-out loss, negative",
        "training": taught.training.to_json(),
        "seconds": seconds,
        "stages": dict(log.stages),
        "device": str(teachers.device),
        "tools": versions(),
        "notes": [*made.notes, *taught.notes, *log.notes],
    }


def shape_of(net: Net) -> dict[str, int]:
    """What makes an encoder large: the sizes of its config, its parameters, and their bytes in float32."""
    config, count = net.model.config, sum(each.numel() for each in net.module.parameters())
    sizes = {"layers": config.num_hidden_layers, "width": config.hidden_size, "ffn": net.ffn}
    return {**sizes, "heads": config.num_attention_heads, "parameters": count, "bytes": 4 * count}
