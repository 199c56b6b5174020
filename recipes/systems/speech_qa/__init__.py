"""speech-qa: a spoken question finds its answer in a list, or is told to be none of it; its letters come beside it."""

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


SYSTEM = System("speech-qa", _train, _judge)
