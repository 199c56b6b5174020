"""How often the next word of held-out replies is told, and whether the built steps say what PyTorch says, token for token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

import bertc

from ..running import AGREEMENT, BASELINE, TRAINED
from . import data, decoding

BATCH = 32
Pair = tuple[list[int], int]  # tokens, and where the reply begins


def judge(artifacts: Mapping[str, Path]) -> dict[str, float]:
    """Of TRAINED the held-out pairs, and what PyTorch said to their prompts without a cache."""
    said = json.loads((artifacts[TRAINED] / "said.json").read_text("utf-8"))
    known = json.loads((artifacts[TRAINED] / "training.json").read_text("utf-8"))["torch"]
    found: dict[str, float] = {}
    for name in ("step", "step-by-layer"):
        runner = bertc.load(artifacts[name])
        if not found:
            found |= told(runner, said["held_out"])
        found |= {f"{AGREEMENT}{name}, {key}": value for key, value in agreement(runner, said).items()}
    return found | {f"{BASELINE}next word, {name}": value for name, value in known.items() if name != "whole"}


def steps_of(runner: Any, rows: int) -> decoding.Steps:
    """The steps of an artifact with empty caches."""
    shapes = {
        spec.name: tuple(0 if isinstance(dim, str) else dim for dim in spec.dims)
        for spec in runner.inputs
        if spec.name.startswith("past")
    }
    return decoding.Steps(runner.run, shapes, rows)


def told(runner: Any, pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of words that are the likeliest behind what stands before them, and the mean chance of a word (geometric)."""
    right, chances = list[np.ndarray](), list[np.ndarray]()
    order = sorted(pairs, key=lambda pair: len(pair[0]))
    for at in range(0, len(order), BATCH):
        some = order[at : at + BATCH]
        scorer, longest = steps_of(runner, len(some)), max(len(tokens) for tokens, _ in some)
        words = np.array([tokens + [data.PAD] * (longest + 1 - len(tokens)) for tokens, _ in some])
        begins = np.array([reply for _, reply in some])
        for place in range(longest):
            scores, wanted = scorer.next(words[:, place], words[:, place] != data.PAD), words[:, place + 1]
            counted = (place + 1 >= begins) & (wanted != data.PAD) & (wanted != data.UNKNOWN)
            right.append((scores.argmax(-1) == wanted)[counted])
            chances.append(log_softmax(scores, axis=-1)[np.arange(len(some)), wanted][counted])
    return {
        "next word": float(np.concatenate(right).mean()),
        "chance of a word": float(np.exp(np.concatenate(chances).mean())),
    }


def agreement(runner: Any, said: Mapping[str, Any]) -> dict[str, float]:
    """Tokens that are the same at the same place, of all that PyTorch said; one that differs changes what stands behind it.
    `forced`: the same where PyTorch's tokens stand before each."""
    prompts, wanted = said["prompts"], np.array(said["greedy"])
    free = decoding.greedy(steps_of(runner, len(prompts)), prompts, wanted.shape[1])
    scorer = steps_of(runner, len(prompts))
    forced = [decoding.read_prompts(scorer, prompts).argmax(-1)]
    forced += [scorer.next(wanted[:, at], np.ones(len(prompts))).argmax(-1) for at in range(wanted.shape[1] - 1)]
    beams = [decoding.beam(steps_of(runner, 4), each, wanted.shape[1]) for each in prompts[: len(said["beam"])]]
    return {
        "greedy": float((free == wanted).mean()),
        "greedy, forced": float((np.stack(forced, 1) == wanted).mean()),
        "beam": float(np.mean([ours == theirs for ours, theirs in zip(beams, said["beam"], strict=True)])),
    }
