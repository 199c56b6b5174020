"""Train the decoder, first on three objectives together, then left to right; beside it one that learned left to right alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertc import FactoryModel

from ..learning import fit, write_rows
from ..running import Budget, Module, write_export
from . import data, decoding, objectives
from .modules import LAYERS, Decoder, Step, StepByLayer

BATCH, RATE = 32, 5e-4
TOGETHER_STEPS, STEPS, QUICK_STEPS = 240, 300, 12
JUDGED, QUICK_JUDGED, PROMPTS, QUICK_PROMPTS = 160, 40, 16, 4
CALIBRATED = 48  # steps that int8 is fitted on
TOKENS = 64
PROFILE = "batch=1:4:64,past=0:32:127"
LIMITS = {"past": (0, 127)}
EXPECT = {"past_attention": len(LAYERS)}
FORMS = {"step": Step, "step-by-layer": StepByLayer}
Objective = Callable[[Sequence[objectives.Pair], np.random.Generator], objectives.Rows]


def train(folder: Path, budget: Budget) -> list[Module]:
    """Write both forms of the step, the judged prompts, and what PyTorch says to them without any cache."""
    learned, judged = data.read(budget.seed)
    known = data.Vocabulary.of(learned)
    judged = judged[: QUICK_JUDGED if budget.quick else JUDGED]
    pairs, held_out = ([known.whole(each) for each in side] for side in (learned, judged))
    torch.manual_seed(budget.seed)
    nets = {"untrained": Decoder(known.known()).eval()}
    nets["left to right alone"] = _taught(known, pairs, budget, together=False)
    nets["whole"] = _taught(known, pairs, budget, together=True)
    found = {name: accuracy(net, held_out) for name, net in nets.items()}
    found["commonest word"] = _commonest(pairs, held_out)
    facts = {"pairs": len(learned), "judged": len(judged), "words": len(known.words), "torch": found}
    (folder / "training.json").write_text(json.dumps(facts, indent=1), "utf-8")
    (folder / "words.json").write_text(json.dumps(known.words, ensure_ascii=False), "utf-8")
    prompts = [known.prompt(each.prompt) for each in judged[: QUICK_PROMPTS if budget.quick else PROMPTS]]
    said = {"prompts": prompts, "held_out": held_out} | answers(lambda rows: Whole(nets["whole"], rows), prompts)
    (folder / "said.json").write_text(json.dumps(said), "utf-8")
    return [_written(folder, name, nets["whole"], pairs) for name in FORMS]


def answers(scorer: Callable[[int], decoding.Scorer], prompts: list[list[int]]) -> dict[str, Any]:
    """What a scorer of so many rows says to the prompts: greedily, and by beam search to the first half of them."""
    few = prompts[: len(prompts) // 2]
    return {
        "greedy": decoding.greedy(scorer(len(prompts)), prompts, TOKENS).tolist(),
        "beam": [decoding.beam(scorer(4), prompt, TOKENS) for prompt in few],
    }


class Whole:
    """The network over all tokens at every call, no cache: what a step is compared with."""

    def __init__(self, net: Decoder, rows: int) -> None:
        self.net, self.words, self.mask = net, np.zeros((rows, 0), np.int64), np.zeros((rows, 0), bool)

    @torch.no_grad()
    def next(self, tokens: np.ndarray, live: np.ndarray) -> np.ndarray:
        self.words = np.concatenate([self.words, tokens[:, None]], 1)
        self.mask = np.concatenate([self.mask, live[:, None] != 0], 1)
        places = np.maximum(np.cumsum(self.mask, 1) - 1, 0)
        seen = self.mask[:, None, :] & np.tri(self.mask.shape[1], dtype=bool)
        states = self.net(*(torch.from_numpy(each) for each in (self.words, places, seen)))
        return self.net.scores(states[:, -1]).numpy()

    def keep(self, rows: np.ndarray) -> None:
        self.words, self.mask = self.words[rows], self.mask[rows]


def _taught(known: data.Vocabulary, pairs: Sequence[objectives.Pair], budget: Budget, together: bool) -> Decoder:
    """30 % of the budget at most for each of its parts; a network that learns left to right alone gets no less of that."""
    torch.manual_seed(budget.seed)
    net, rng = Decoder(known.known()), np.random.default_rng(budget.seed)

    def learn(kinds: tuple[Objective, ...], steps: int) -> None:
        def loss_of() -> torch.Tensor:
            chosen = [pairs[at] for at in rng.choice(len(pairs), BATCH, replace=False)]
            return torch.stack([_loss(net, kind(chosen, rng)) for kind in kinds]).sum()

        fit({RATE: list(net.parameters())}, loss_of, QUICK_STEPS if budget.quick else steps, 0.3 * budget.seconds)

    if together:
        learn(objectives.TOGETHER, TOGETHER_STEPS)
    learn((objectives.left_to_right,), STEPS)
    return net.eval()


def _loss(net: Decoder, rows: objectives.Rows) -> torch.Tensor:
    wanted = torch.from_numpy(rows.wanted)
    told = wanted != objectives.IGNORED
    lost = None if rows.lost is None else torch.from_numpy(rows.lost)
    states = net(*(torch.from_numpy(each) for each in (rows.words, rows.places, rows.seen)), lost)[told]
    scores = net.where(states) if lost is not None else net.scores(states)
    return nn.functional.cross_entropy(scores.float(), wanted[told])


@torch.no_grad()
def accuracy(net: Decoder, pairs: Sequence[objectives.Pair]) -> float:
    """How many words of the replies are the likeliest behind what stands before them."""
    rows = objectives.left_to_right(pairs, np.random.default_rng(0))
    told = rows.wanted != objectives.IGNORED
    states = net(*(torch.from_numpy(each) for each in (rows.words, rows.places, rows.seen)))
    return float((net.scores(states[torch.from_numpy(told)]).argmax(-1).numpy() == rows.wanted[told]).mean())


def _commonest(pairs: Sequence[objectives.Pair], held_out: Sequence[objectives.Pair]) -> float:
    """What one word reaches that is always said."""
    said = np.concatenate([np.array(tokens[at:]) for tokens, at in pairs])
    rows = objectives.left_to_right(held_out, np.random.default_rng(0)).wanted
    return float((rows[rows != objectives.IGNORED] == np.bincount(said).argmax()).mean())


def _written(folder: Path, name: str, net: Decoder, pairs: Sequence[objectives.Pair]) -> Module:
    """The export of one form, and steps of learned conversations, at all lengths, as data like what it will see."""
    step, shapes = FORMS[name](net).eval(), cache_shapes(name, net)
    outputs = ["logits", *(key.replace("past", "present") for key in shapes)]

    @torch.no_grad()
    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(outputs, (each.numpy() for each in step(*map(torch.from_numpy, feeds.values()))), strict=True))

    samples = []
    for at in range(CALIBRATED):
        tokens, _ = pairs[at]
        scorer = decoding.Steps(run, shapes, 1)
        for token in tokens[: 1 + at * len(tokens) // CALIBRATED]:
            scorer.next(np.array([token]), np.ones(1))
        samples.append(scorer.feeds)
    rows = write_rows(folder / f"{name}.npz", samples)
    example = {key: torch.from_numpy(array) for key, array in _example(samples[-1], shapes).items()}
    dims: dict[str, tuple[int | str, ...]] = {"input_ids": ("batch", 1), "mask": ("batch", "past + 1")}
    dims |= {key: (*shape[:-4], "batch", shape[-3], "past", shape[-1]) for key, shape in shapes.items()}
    made = FactoryModel(step, example, dims, outputs, LIMITS)
    return Module(name, write_export(lambda: made, folder / name, profiles=[PROFILE], task="masked-lm"), rows, EXPECT)


def cache_shapes(name: str, net: Decoder) -> dict[str, tuple[int, ...]]:
    """The shapes of the caches of a form; rows and past are 0."""
    layer: Any = net.layers[0]
    one = (2, 0, layer.heads, 0, layer.size)
    return {"past": (len(LAYERS), *one)} if name == "step" else {f"past_{at}": one for at in range(len(LAYERS))}


def _example(feeds: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Two rows of it."""
    return {key: np.repeat(array, 2, len(shapes[key]) - 4 if key in shapes else 0) for key, array in feeds.items()}
