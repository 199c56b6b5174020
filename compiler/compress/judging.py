"""What a compressed model lost: distill's measures on held-out texts, and MRR on pairs where there are some."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core import DataError, Progress, counted
from ..data import tables
from ..distill import Lesson, Net, Teachers, Texts, judge, lesson_of, quality, ranks_of
from .importance import CPU

Ranks = np.ndarray


@dataclasses.dataclass
class Judge:
    """Held-out texts with the original's answers, and pairs to rank by."""

    teachers: Teachers
    lesson: Lesson
    pairs: Sequence[tuple[str, str]]
    original_ranks: Ranks | None = None

    def __call__(self, net: Net) -> dict[str, Any]:
        """The measures of a model, each with its interval."""
        measures = quality(net, self.teachers, self.lesson, self.lesson.targets)
        made: dict[str, Any] = {"measures": [each.to_json() for each in measures], "tasks": []}
        if self.original_ranks is not None:
            metric = judge.drop_of(f"MRR@{judge.DEPTH}", ranks_of(net, self.pairs, CPU), self.original_ranks)
            facts = {"name": metric.name, "original": metric.source, "value": metric.artifact, "drop": metric.drop}
            made["tasks"].append({**facts, "low": metric.low, "high": metric.high, "rows": metric.rows})
        return made


def judge_of(original: Net, teachers: Teachers, texts: Texts, pairs: Sequence[tuple[str, str]], log: Progress) -> Judge:
    """Everything that a judgement needs of the original, computed once, in float32."""
    teachers.device = torch.device("cpu")
    lesson = lesson_of(original, teachers, texts.held_out, log, "held-out texts", labelled=False, pairs=False)
    made = Judge(teachers, lesson, pairs)
    if pairs and original.task == "sentence-embedding":
        made.original_ranks = ranks_of(original, pairs, CPU)
    return made


def read_pairs(path: Any, task: str, log: Progress) -> list[tuple[str, str]]:
    """Pairs (query, passage) of a file."""
    if path is None:
        return []
    if task != "sentence-embedding":
        log.note(f"--pairs not used: they rank sentence embeddings, and this model is for {task}")
        return []
    found = [row.text for row in tables.read_table(path).rows if isinstance(row.text, tuple)]
    if len(found) < 2:
        raise DataError(f"{path} has {counted(len(found), 'pair')}; --pairs takes 2 or more rows of text (a query) and text_pair")
    return list(dict.fromkeys(found))
