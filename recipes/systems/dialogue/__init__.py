"""dialogue: replies, token by token: a decoder made of an encoder, its caches in and out, greedy and beam search around it."""

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


SYSTEM = System("dialogue", _train, _judge)
