"""bertc compress, in order: open, read texts, take out step by step, repair, judge, write."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import staging
from ..core import VERSION, Progress, counted, hash_file, silent, versions
from ..distill import Example, Net, Teachers, Texts, encode, net_of, read_texts, teachers_of
from ..recipe import resolve, with_permissions
from ..source import open_trainable
from . import ffn, heads, low_rank, sharing
from .engine import measure
from .judging import Judge, judge_of, read_pairs
from .layers import drop, require_layers
from .parts import check_family, parts_of
from .repair import repair
from .request import Request, check
from .step import Step, Work
from .writing import EXPORT, form_of, write

FORMAT = 1
HELD_OUT = 0.05  # of the texts, where no file of them is given
APPLY: dict[str, Callable[[Work, Request, Progress], Step]] = {
    "drop_layers": lambda work, request, log: drop(work, request.drop_layers or 0, log),
    "prune_ffn": lambda work, request, log: ffn.prune(work, request.prune_ffn or 0, request.multiple, log),
    "prune_heads": lambda work, request, log: heads.prune(work, request.prune_heads or 0, request.multiple, log),
    "low_rank": lambda work, request, log: low_rank.factorise(
        work, request.low_rank or 0, request.multiple, log, request.weighted
    ),
    "share_layers": lambda work, request, log: sharing.share(work, request.share_layers or "", log),
}


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed model on disk, and what its compression.json says."""

    path: Path
    document: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Made:
    """A compressed model in memory, with everything that was measured on the way."""

    net: Net
    original: Net
    document: dict[str, Any]


def compress(
    request: Request, out: Path, *, force: bool = False, progress: Progress | None = None, count: bool = True
) -> Compressed:
    """Compress a model and write it to `out`. Without `count` no engine is compiled to count its kernels.

    Raises InputError or DataError for what cannot be compressed so; `out` is then as it was before.
    """
    log = progress or Progress()
    check(request)
    with staging(out, force) as stage:
        made = compressed(request, log, count=count)
        write(made.net, stage, made.document, request.model, request.seed, log)
    return Compressed(out, made.document)


def compressed(request: Request, log: Progress, *, count: bool = True) -> Made:
    """The compressed model, in memory. Without `count` no engine is compiled: for who looks at quality alone."""
    began = time.monotonic()
    check(request)
    original, texts, teachers = open_model(request, log)
    _require_fitting(original, request)
    pairs = read_pairs(request.pairs, original.task, log)
    with log.stage("judge the original"):
        judge = judge_of(original, teachers, texts, pairs, log)
    encoded = encode(some(texts, request), original.encoder, silent)
    work = Work(_copy(original), original, tuple(range(len(original.layers))), encoded, request.seed)
    start = {"quality": judge(original), **_shape_facts(original, log, count)}
    steps = []
    for name in request.wanted:
        found = APPLY[name](work, request, log)
        work = dataclasses.replace(work, net=found.net, layers=found.layers)
        log.say(found.said)
        for note in found.notes:
            log.note(note)
        steps.append(_step_facts(found, judge, log, count))
    fixed = _repaired(work, teachers, texts, request, judge, steps[-1]["quality"], log) if request.recover else None
    document = {
        "format": FORMAT,
        "bertc": VERSION,
        "model": {"reference": str(request.model), "sha256": original.origin.sha256},
        "task": original.task,
        "form": form_of(work.net),
        "request": request.to_json(),
        "layers": list(work.layers),
        "original": start,
        "steps": steps,
        "recovery": fixed,
        "texts": {"measured": len(encoded.rows), "learned": len(texts.learned), "held_out": len(texts.held_out)},
        "files": _files(request),
        "seconds": time.monotonic() - began,
        "tools": versions(),
    }
    return Made(work.net, original, {**document, "summary": _summary(document), "notes": _notes(document, log)})


def open_model(request: Request, log: Progress) -> tuple[Net, Texts, Teachers]:
    """The model, the texts, and the model once more as the frozen teacher of what is left of it."""
    with log.stage("open the model"):
        found, _ = resolve(request.model)
        options = dataclasses.replace(request.options, task=request.options.task or found.task)
        options = with_permissions(options, found)
        original = net_of(open_trainable(found.source, options), request.max_length)
    check_family(original)
    whole = original.task not in ("sentence-embedding", "token-embedding")
    with log.stage("read texts"):
        texts = read_texts(request.data, None, HELD_OUT, request.held_out, pairs=whole)
    for note in (*texts.notes, *original.origin.notes):
        log.note(note)
    teachers = teachers_of([original], ())
    teachers.freeze()
    return original, texts, teachers


def _require_fitting(net: Net, request: Request) -> None:
    """Refuse before any long work what the shapes of a model do not allow."""
    parts, depth = parts_of(net), len(net.layers) - (request.drop_layers or 0)
    if request.drop_layers is not None:
        require_layers(len(net.layers), request.drop_layers)
    first = parts[0].get(parts[0].first).weight.shape
    width = first[0]
    if request.prune_ffn is not None:
        width, _ = ffn.neurons_kept(width, request.prune_ffn, request.multiple)
    if request.prune_heads is not None:
        heads.group_of(parts[:depth], request.prune_heads, request.multiple)
    if request.low_rank is not None:
        low_rank.rank_of(request.low_rank, width, first[1], request.multiple)
    if request.share_layers is not None:
        sharing.require_several(depth)


def _copy(net: Net) -> Net:
    return Net(copy.deepcopy(net.module), net.origin, net.encoder)


def some(texts: Texts, request: Request) -> list[Example]:
    """The texts that importance is measured on: none that is held out."""
    count = min(request.samples, len(texts.learned))
    chosen = np.random.default_rng(request.seed).permutation(len(texts.learned))[:count]
    return [texts.learned[at] for at in sorted(chosen)]


def _shape_facts(net: Net, log: Progress, count: bool) -> dict[str, Any]:
    parts = parts_of(net)
    parameters = {id(each): each.numel() for each in net.module.parameters()}
    shape = {
        "layers": len(parts),
        "heads": [each.heads for each in parts],
        "ffn": [each.neurons for each in parts],
        "parameters": sum(parameters.values()),
    }
    return {"shape": shape, "engine": measure(net, log).to_json() if count else None}


def _step_facts(found: Step, judge: Judge, log: Progress, count: bool) -> dict[str, Any]:
    with log.stage("judge"):
        quality = judge(found.net)
    facts = {"name": found.name, "said": found.said, "facts": found.facts, "notes": list(found.notes), "quality": quality}
    return {**facts, **_shape_facts(found.net, log, count)}


def _repaired(
    work: Work, teachers: Teachers, texts: Texts, request: Request, judge: Judge, unrepaired: dict[str, Any], log: Progress
) -> dict[str, Any]:
    """Train what is left; it stays as it was where that made it worse by the first measure."""
    before = copy.deepcopy(work.net.module.state_dict())
    facts = repair(work.net, teachers, work.layers, texts, request, log)
    work.net.module.to("cpu")
    for net in teachers.nets:
        net.module.to("cpu")
    judge.teachers = teachers_of(teachers.nets, ())
    with log.stage("judge"):
        quality = judge(work.net)
    first, last = (each["measures"][0] for each in (unrepaired, quality))
    worse = last["value"] < first["value"]
    if worse:
        work.net.module.load_state_dict(before)
        log.note(
            f"the repair was thrown away: {last['name']} {first['value']:.4f} before, {last['value']:.4f} after; give it more "
            "steps (--recover), or leave it out"
        )
    return {**facts, "kept": not worse, "quality": unrepaired if worse else quality, "thrown_away": quality if worse else None}


def _files(request: Request) -> dict[str, Any]:
    named = {name: getattr(request, name) for name in ("data", "held_out", "pairs")}
    return {name: {"name": path.name, "sha256": hash_file(path)} for name, path in named.items() if path is not None}


def _summary(document: dict[str, Any]) -> str:
    last, first = document["steps"][-1], document["original"]
    words = [f"{(1 - last['shape']['parameters'] / first['shape']['parameters']):.1%} of the parameters gone"]
    if last["engine"]:
        words.append(f"{1 - last['engine']['flops'] / max(first['engine']['flops'], 1):.1%} of the FLOPs")
    measures = [f"{each['name']} {each['value']:.4f}" for each in last["quality"]["measures"]]
    text = ", ".join(words) + "; " + ", ".join(measures)
    if document["recovery"]:
        after = ", ".join(f"{each['name']} {each['value']:.4f}" for each in document["recovery"]["quality"]["measures"])
        steps = counted(document["recovery"]["steps"], "step")
        text += f"; after {steps} of repair {after}" if document["recovery"]["kept"] else f"; {steps} of repair made it no better"
    return text


def _notes(document: dict[str, Any], log: Progress) -> list[str]:
    notes = list(log.notes)
    if document["form"] == EXPORT:
        notes.append(
            "written as an export (a graph and goldens, no weights for PyTorch): no Hugging Face config can hold what differs by "
            "layer, or matrices of low rank; bertc build takes it, transformers does not"
        )
    return notes
