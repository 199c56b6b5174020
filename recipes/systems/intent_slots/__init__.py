"""intent-slots: what a sentence asks for, from its words and from slots that a dictionary found in it, some of them wrongly."""

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


SYSTEM = System("intent-slots", _train, _judge)
