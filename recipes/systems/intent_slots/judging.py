"""Accuracy of the intent with right, noisy and no slots, over the built artifact; beside it, what that is without a gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import bertc

from ..running import BASELINE, TRAINED
from .training import KINDS

BATCH = 64


def judge(artifacts: Mapping[str, Path]) -> dict[str, float]:
    """Of TRAINED the test rows are read, and what the network without a gate reached in torch."""
    runner, test = bertc.load(artifacts["intent"]), dict(np.load(artifacts[TRAINED] / "test.npz"))
    known = json.loads((artifacts[TRAINED] / "training.json").read_text("utf-8"))["torch"]
    found = {}
    for kind in KINDS:
        rows = {name.partition(".")[2]: array for name, array in test.items() if name.startswith(f"{kind}.")}
        wanted, hits = rows.pop("intent"), 0
        for at in range(0, len(wanted), BATCH):
            logits = runner.run({name: array[at : at + BATCH] for name, array in rows.items()})["logits"]
            hits += int((logits.argmax(-1) == wanted[at : at + BATCH]).sum())
        found[f"accuracy, {kind} slots"] = hits / len(wanted)
    found |= {f"{BASELINE}without gate, {kind} slots": known[f"ungated, {kind} slots"] for kind in KINDS}
    return {**found, f"{BASELINE}majority": known["majority"]}
