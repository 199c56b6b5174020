"""What search.json says: the space, the costs, every trial, the front, the finalists and the chosen one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ..compress import form_of
from ..core import VERSION, Progress, hash_file, versions
from ..distill import Training, judge
from . import engines
from .finalists import Finalist
from .opened import Opened
from .request import Request
from .table import Table
from .trials import Trial, front

FORMAT = 1
BAR = 0.1  # an engine within so much of the table


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search found, the chosen one first."""

    table: Table
    supernet: Training
    trials: list[Trial]
    finalists: list[Finalist]


def judged(opened: Opened, chosen: Finalist, request: Request) -> dict[str, Any]:
    """The chosen student on held-out texts, as a module in float32 and, where it runs here, in its engine."""
    found = opened.judge(chosen.net)
    precision = chosen.measured.trial.candidate.precision
    if not opened.bench.runs or opened.original.task != "sentence-embedding":
        why = "its target does not run here" if not opened.bench.runs else "only vectors of texts are judged so"
        return {**found, "engine": None, "engine_why": f"{why}; bertc verify judges what is built"}
    runner = engines.made(chosen.net, (precision,), opened.bench, opened=True)[precision].runner
    assert runner is not None, "it was to be opened"
    lesson = opened.judge.lesson
    measures = judge.of_vectors(engines.outputs(runner, lesson.encoded), lesson.targets[0])
    return {**found, "engine": [each.to_json() for each in measures], "engine_why": ""}


def made(
    opened: Opened, found: Searched, quality: dict[str, Any], request: Request, log: Progress, seconds: float
) -> dict[str, Any]:  # fmt: skip
    """The document."""
    budget, chosen = request.budget, found.finalists[0]
    files = {name: getattr(request, name) for name in ("data", "held_out", "pairs")}
    whole = opened.space.largest()
    told = {
        "format": FORMAT,
        "bertc": VERSION,
        "model": {"reference": str(request.model), "sha256": opened.original.origin.sha256},
        "task": opened.original.task,
        "request": request.to_json(),
        "budget": {"kind": budget.kind, "limit": _shown(budget.limit, budget.kind), "text": budget.text},
        "bench": opened.bench.facts(),
        "space": opened.space.to_json(),
        "costs": found.table.to_json(),
        "original": {**whole.to_json(), **found.table.of(whole).to_json(), "quality": opened.judge(opened.original)},
        "supernet": found.supernet.to_json(),
        "trials": [each.to_json() for each in found.trials],
        "front": [each.number for each in front(found.trials, budget)],
        "finalists": [_finalist(each, request) for each in found.finalists],
        "chosen": {**_finalist(chosen, request), "quality": quality, "form": form_of(chosen.net)},
        "texts": {"learned": len(opened.texts.learned), "held_out": len(opened.texts.held_out)},
        "files": {name: {"name": path.name, "sha256": hash_file(path)} for name, path in files.items() if path is not None},
        "seconds": seconds,
        "stages": dict(log.stages),
        "threads": torch.get_num_threads(),
        "tools": versions(),
    }
    return {**told, "summary": summary(told), "notes": [*log.notes, *_notes(told)]}


def _shown(value: float, kind: str) -> float:
    """Milliseconds, or bytes."""
    return value * 1e3 if kind == "latency" else value


def _finalist(each: Finalist, request: Request) -> dict[str, Any]:
    budget, trial = request.budget, each.measured.trial
    drift = each.measured.drift
    return {
        "trial": trial.number,
        **trial.candidate.to_json(),
        "name": str(trial.candidate),
        "start": trial.start,
        "table": trial.cost.to_json(),
        "measured": each.measured.cost.to_json(),
        "error": each.measured.error(budget),
        "drift": None if math.isnan(drift) else drift,
        **each.training,
    }


def summary(told: dict[str, Any]) -> str:
    """One line: what was chosen, what it costs against the limit and the table, how good it is."""
    chosen, kind = told["chosen"], told["budget"]["kind"]
    cost, by_table = (_cost(chosen[name], kind) for name in ("measured", "table"))
    measures = chosen["quality"]["engine"] or chosen["quality"]["measures"]
    words = [f"{each['name']} {each['value']:.4f}" for each in measures]
    text = f"{chosen['name']}: {cost} of {told['budget']['text']} (by the table {by_table}, {chosen['error']:+.1%}); "
    return text + ", ".join(words)


def _cost(facts: dict[str, Any], kind: str) -> str:
    return f"{facts['milliseconds']:.3g} ms" if kind == "latency" else f"{facts['weight_bytes'] / 1e6:.4g} MB"


def _notes(told: dict[str, Any]) -> list[str]:
    chosen, notes = told["chosen"], []
    if told["budget"]["kind"] == "latency":
        said = "within" if abs(chosen["error"]) <= BAR else "NOT within"
        notes.append(f"the engine of the chosen student is {said} {BAR:.0%} of the table: {chosen['error']:+.1%}")
        if abs(chosen["drift"] - 1) > BAR:
            notes.append(
                f"the machine changed its pace: the table's own reference took {chosen['drift'] - 1:+.0%} when the best engines "
                "were timed. Their times are told at the table's pace, by their ratio to it"
            )
    if told["chosen"]["form"] == "export":
        notes.append(
            "written as an export (a graph and goldens, no weights for PyTorch): no Hugging Face config can hold what differs by "
            "layer; bertc build takes it, transformers does not. --uniform searches among those that it can hold"
        )
    return notes
