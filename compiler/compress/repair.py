"""A short training of what is left, with the original as its teacher."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from ..core import Progress
from ..distill import Net, Settings, Teachers, Texts, teach
from .request import Request, recovery

TRIAL_STEPS = 6
RATE = 1e-4  # a quarter of a student's: most of the model is still what it was, and more undoes it at first


def repair(net: Net, teachers: Teachers, layers: Sequence[int], texts: Texts, request: Request, log: Progress) -> dict[str, Any]:
    """Train in place for so many steps, or so long: then a trial says how many steps that is. Returns facts for the report."""
    steps, seconds = recovery(request.recover)
    settings = Settings(max_length=request.max_length, learning_rate=RATE, seed=request.seed)
    # Under the highest rate a model that is nearly whole gets worse before it gets better: never stopped on the way.
    settings = dataclasses.replace(settings, patience=settings.evaluations)
    if steps is None:
        assert seconds is not None, "run() asks for a repair only where --recover is given"
        with log.stage("time a step"):
            steps = max(1, int(seconds / _seconds_a_step(net, teachers, layers, texts, settings)))
    settings = dataclasses.replace(settings, steps=steps)
    found = teach(net, teachers, layers, _first(texts, steps * settings.batch), settings, log=log)
    return {
        "asked": request.recover,
        "steps": found.training.steps,
        "best_step": found.training.best_step,
        "seconds": found.training.seconds,
        "texts": min(len(texts.learned), steps * settings.batch),
        "losses": found.objective.weights,
        "learning_rate": RATE,
        "training": found.training.to_json(),
        "notes": list(found.notes),
    }


def _seconds_a_step(net: Net, teachers: Teachers, layers: Sequence[int], texts: Texts, settings: Settings) -> float:
    trial = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    few = Texts(_first(texts, TRIAL_STEPS * settings.batch).learned, texts.held_out[:8])
    short = dataclasses.replace(settings, steps=TRIAL_STEPS, evaluations=1)
    found = teach(trial, teachers, layers, few, short, log=Progress())
    return max(found.training.seconds / max(found.training.steps, 1), 1e-4)


def _first(texts: Texts, count: int) -> Texts:
    """As many texts as the steps see: the teacher runs on no others."""
    return Texts(texts.learned[:count], texts.held_out, texts.notes)
