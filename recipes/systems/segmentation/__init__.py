"""segmentation: Chinese text cut into words, fine or coarse as a tag asks, with the two-character words of a dictionary."""

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


SYSTEM = System("segmentation", _train, _judge)
