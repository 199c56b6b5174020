"""Train the whole network and, for comparison, one without bigrams and one without the joint loss."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertc import FactoryModel

from ..learning import fit, write_rows
from ..running import Budget, Module, write_export
from . import data
from .judging import INPUTS, Run, scores
from .modules import Segmenter

BATCH, STEPS, QUICK_STEPS = 64, 700, 40
RATE = 2e-3
JOINT = 0.1  # the weight of the granularity's loss
IGNORED = -100
TEST_ROWS, QUICK_ROWS, CALIBRATION_ROWS = 1000, 150, 128
PROFILE = "batch=1:8:64,length=4:48:64"
EXPECT = {"attention": 3}
KINDS = {"whole": (True, True), "without bigrams": (False, True), "without joint loss": (True, False)}  # paired, joint
Arrays = dict[str, np.ndarray]


def train(folder: Path, budget: Budget) -> list[Module]:
    """All three get the same steps unless their time ends first (30 % of the budget each); a quick one makes the whole alone."""
    learned, judged = data.read(budget.seed)
    judged = judged[: QUICK_ROWS if budget.quick else TEST_ROWS]
    known = data.vocabulary(learned)
    test = {f"{tag}.{name}": array for tag in data.GRANULARITIES for name, array in rows_of(judged, known, tag, tag).items()}
    nets, took = {}, {}
    for name, (paired, joint) in KINDS.items() if not budget.quick else [("whole", KINDS["whole"])]:
        nets[name], took[name] = _taught(learned, known, budget, paired, joint)
    found = {name: scores(_run(net), test) for name, net in nets.items()}
    swapped = {f"{tag}.{name}": array for tag, other in zip(data.GRANULARITIES, reversed(data.GRANULARITIES), strict=True)
               for name, array in rows_of(judged, known, tag, other).items()}  # fmt: skip
    found["wrong tag"] = scores(_run(nets["whole"]), swapped)
    found["a word a character"] = scores(_singles, test)
    facts = {"sentences": len(learned), "test": len(judged), "characters": len(known.characters), "seconds": took, "torch": found}
    (folder / "training.json").write_text(json.dumps(facts, indent=1), "utf-8")
    whole: dict[str, Any] = dict(test)
    np.savez(folder / "test.npz", **whole)
    seen = learned[:CALIBRATION_ROWS]
    halves = [rows_of(seen[at::2], known, tag, tag) for at, tag in enumerate(data.GRANULARITIES)]
    samples = [{name: half[name][at : at + 1] for name in INPUTS} for half in halves for at in range(len(half["input_ids"]))]
    rows = write_rows(folder / "rows.npz", samples)
    made = _factory(nets["whole"], seen, known)
    source = write_export(lambda: made, folder / "segmenter", profiles=[PROFILE], task="token-classification")
    return [Module("segmenter", source, rows, EXPECT)]


def _taught(
    learned: Sequence[data.Sentence], known: data.Vocabulary, budget: Budget, paired: bool, joint: bool
) -> tuple[Segmenter, float]:
    """A network, and the CPU seconds that it took."""
    torch.manual_seed(budget.seed)
    rng, tags = random.Random(budget.seed), data.GRANULARITIES
    net = Segmenter(len(known.characters) + data.FIRST, len(known.bigrams) + 1, len(data.LETTERS), len(tags), paired)

    def loss_of() -> torch.Tensor:
        chosen = rng.sample(learned, BATCH)
        halves = [rows_of(chosen[at::2], known, tag, tag, data.LONGEST + 1) for at, tag in enumerate(tags)]
        rows = {name: torch.from_numpy(np.concatenate([half[name] for half in halves])) for name in halves[0]}
        longest = int(rows["attention_mask"].sum(1).max())
        letters, granularity = net(*(rows[name][:, :longest] for name in INPUTS))
        wanted = rows["letters"][:, :longest].flatten()
        loss = nn.functional.cross_entropy(letters.float().flatten(0, 1), wanted, ignore_index=IGNORED)
        return loss + JOINT * nn.functional.cross_entropy(granularity.float(), rows["granularity"]) if joint else loss

    steps = QUICK_STEPS if budget.quick else STEPS
    seconds = fit({RATE: list(net.parameters())}, loss_of, steps, 0.3 * budget.seconds)
    return net.eval(), seconds


def rows_of(sentences: Sequence[data.Sentence], known: data.Vocabulary, wanted: str, tag: str, length: int = 0) -> Arrays:
    """Sentences under a tag as the arrays that the network reads, and the letters of the granularity that is wanted."""
    number = {character: at + data.FIRST for at, character in enumerate(known.characters)}
    pair = {bigram: at + 1 for at, bigram in enumerate(known.bigrams)}
    length = length or 1 + max(len(each.text) for each in sentences)
    shape = (len(sentences), length)
    made = {"input_ids": np.full(shape, data.PAD), "attention_mask": np.zeros(shape, np.int64)}
    made |= {"bigrams": np.zeros((*shape, 2), np.int64), "letters": np.full(shape, IGNORED)}
    for row, each in enumerate(sentences):
        text, end = each.text, len(each.text) + 1
        pairs = [pair.get(text[at : at + 2], 0) for at in range(len(text) - 1)]
        made["input_ids"][row, :end] = [2 + data.GRANULARITIES.index(tag), *(number.get(c, data.UNKNOWN) for c in text)]
        made["attention_mask"][row, :end] = 1
        made["bigrams"][row, 1:end] = list(zip([0, *pairs], [*pairs, 0], strict=True))
        made["letters"][row, 1:end] = each.letters(wanted)
    return {**made, "granularity": np.full(len(sentences), data.GRANULARITIES.index(tag))}


def _run(net: nn.Module) -> Run:
    def run(feeds: Arrays) -> np.ndarray:
        with torch.no_grad():
            return net(**{name: torch.from_numpy(array) for name, array in feeds.items()})[0].numpy()

    return run


def _singles(feeds: Arrays) -> np.ndarray:
    """Every character as a word of its own: what needs no training."""
    return np.broadcast_to(np.eye(len(data.LETTERS))[data.LETTERS.index("S")], (*feeds["input_ids"].shape, len(data.LETTERS)))


def _factory(net: nn.Module, sentences: Sequence[data.Sentence], known: data.Vocabulary) -> FactoryModel:
    rows = rows_of(sentences[:2], known, "fine", "fine")
    inputs = {name: torch.from_numpy(rows[name]) for name in INPUTS}
    dims = {name: ("batch", "length", 2)[: value.ndim] for name, value in inputs.items()}
    return FactoryModel(net, inputs, dims, ["letters", "granularity"], {"length": (1, 64)})
