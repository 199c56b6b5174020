"""text-qa: a question finds its passage: normalise, recall by vectors, rank the candidates by a cross-encoder, take the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..running import Budget, Module, System


def _train(folder: Path, budget: Budget) -> list[Module]:
    from .training import train

    return train(folder, budget)


def _judge(artifacts: Mapping[str, Path]) -> Mapping[str, float]:
    from .judging import judge

    return judge(artifacts)


SYSTEM = System("text-qa", _train, _judge)
