"""Teach the network whose question a clip is, among those of the list and others, and which letters are in it (CTC)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertc import FactoryModel

from ..learning import fit, write_rows
from ..running import Budget, Module, write_export
from . import data
from .judging import judged_by
from .modules import VECTOR, Listener

BATCH, STEPS, QUICK_STEPS = 32, 1300, 150
RATE, SHARPNESS, LETTERS_WEIGHT = 3e-3, 16.0, 0.3
CALIBRATED = 64
PROFILE = "batch=1:4:16,samples=2400:32000:32000"
EXPECT = {"attention": 2}


def train(folder: Path, budget: Budget) -> list[Module]:
    """Write the module, clips that enrol the list, set the threshold and judge, and what an untrained network reaches."""
    asked = data.questions(budget.seed, 8, 0, 8) if budget.quick else data.questions(budget.seed)
    clips = _judging_clips(asked, budget)
    np.savez(folder / "clips.npz", **clips)
    texts = [*asked.listed, *asked.learned]
    rng = random.Random(budget.seed)
    clean, said = data.clips(texts, data.LEARNED_VOICES, 4 if budget.quick else 6, rng)
    torch.manual_seed(budget.seed)
    net = Listener(len(data.LETTERS))
    untrained = judged_by(_run(net.eval()), clips)
    seconds = _teach(net.train(), clean, said, texts, budget)
    facts = {
        "listed": asked.listed, "learned": len(asked.learned), "clips": len(said), "seconds": seconds,
        "torch": {"untrained": untrained, "whole": judged_by(_run(net.eval()), clips)},
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=1), "utf-8")
    heard = data.heard(clean[:: max(1, len(clean) // CALIBRATED)][:CALIBRATED], np.random.default_rng(budget.seed))
    rows = write_rows(folder / "rows.npz", [{"input_values": clip[None]} for clip in heard])
    example = {"input_values": torch.from_numpy(heard[:2])}
    made = FactoryModel(
        net, example, {"input_values": ("batch", "samples")}, ("vector", "logits"), {"samples": (2400, data.WINDOW)}
    )
    source = write_export(lambda: made, folder / "listener", profiles=[PROFILE], task="ctc")
    return [Module("listener", source, rows, EXPECT)]


def _judging_clips(asked: data.Questions, budget: Budget) -> dict[str, Any]:
    """By part its clips and, of those of the list, the numbers of their questions. `enrolled`: as the learned voices say them."""
    rng, noise = random.Random(budget.seed + 1), np.random.default_rng(budget.seed + 1)
    listed, found = list(asked.listed), dict[str, Any]()
    parts = {
        "enrolled": (listed, data.LEARNED_VOICES, 3), "known": (listed, data.JUDGED_VOICES, 6),
        "set known": (listed, data.JUDGED_VOICES, 2), "set unknown": (asked.validation, data.JUDGED_VOICES, 6),
        "unknown": (asked.test, data.JUDGED_VOICES, 6),
    }  # fmt: skip
    for name, (texts, voices, each) in parts.items():
        clean, said = data.clips(texts, voices, each, rng)
        found[f"{name}.clips"], found[f"{name}.texts"] = data.heard(clean, noise), np.array(said)
        if texts is listed:
            found[f"{name}.number"] = np.array([listed.index(text) for text in said])
    return found


def _teach(net: Listener, clean: np.ndarray, said: Sequence[str], texts: Sequence[str], budget: Budget) -> float:
    """A class for each text by cosine (Wang et al. 2017, "NormFace"), and CTC; both from clips in fresh noise."""
    rng, number = np.random.default_rng(budget.seed), {text: at for at, text in enumerate(texts)}
    classes = nn.Parameter(0.1 * torch.randn(len(texts), VECTOR))

    def loss_of() -> Tensor:
        chosen = rng.choice(len(said), min(BATCH, len(said)), replace=False)
        vectors, letters = net(torch.from_numpy(data.heard(clean[chosen], rng)))
        near = vectors.float() @ nn.functional.normalize(classes, dim=-1).T
        loss = nn.functional.cross_entropy(SHARPNESS * near, torch.tensor([number[said[at]] for at in chosen]))
        spelled = [data.numbers(said[at]) for at in chosen]
        lengths = torch.tensor([len(each) for each in spelled])
        chances = letters.float().log_softmax(-1).transpose(0, 1)
        frames = torch.full((len(chosen),), len(chances))
        flat = torch.tensor([symbol for each in spelled for symbol in each])
        return loss + LETTERS_WEIGHT * nn.functional.ctc_loss(chances, flat, frames, lengths)

    steps = QUICK_STEPS if budget.quick else STEPS
    return fit({RATE: [*net.parameters(), classes]}, loss_of, steps, 0.85 * budget.seconds)


def _run(net: nn.Module) -> Any:
    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            vector, logits = net(torch.from_numpy(feeds["input_values"]))
        return {"vector": vector.numpy(), "logits": logits.numpy()}

    return run
