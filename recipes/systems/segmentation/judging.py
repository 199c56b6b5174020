"""F1 of words in both granularities over the built artifact (a word counts when both ends are right); beside it the ablations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import bertc

from ..running import BASELINE, TRAINED
from . import data

BATCH = 64
INPUTS = ("input_ids", "attention_mask", "bigrams")
Run = Callable[[dict[str, np.ndarray]], np.ndarray]  # feeds -> scores of the letters


def judge(artifacts: Mapping[str, Path]) -> dict[str, float]:
    runner, test = bertc.load(artifacts["segmenter"]), dict(np.load(artifacts[TRAINED] / "test.npz"))
    known = json.loads((artifacts[TRAINED] / "training.json").read_text("utf-8"))["torch"]
    found = {f"F1, {tag}": value for tag, value in scores(lambda feeds: runner.run(feeds)["letters"], test).items()}
    others = {f"{BASELINE}{name}, {tag}": value for name, both in known.items() if name != "whole" for tag, value in both.items()}
    return found | others


def scores(run: Run, test: Mapping[str, np.ndarray]) -> dict[str, float]:
    """F1 by granularity."""
    found = {}
    for tag in data.GRANULARITIES:
        hits = made = wanted = 0
        for at in range(0, len(test[f"{tag}.letters"]), BATCH):
            feeds = {name: test[f"{tag}.{name}"][at : at + BATCH] for name in INPUTS}
            given = run(feeds).argmax(-1)
            for guess, letters in zip(given, test[f"{tag}.letters"][at : at + BATCH], strict=True):
                ours, theirs = (words(each[letters >= 0]) for each in (guess, letters))
                hits, made, wanted = hits + len(ours & theirs), made + len(ours), wanted + len(theirs)
        found[tag] = 2 * hits / (made + wanted)
    return found


def words(letters: np.ndarray) -> set[tuple[int, int]]:
    """(first, end) of each word; a word begins at B or S, and behind E or S."""
    begins, ends = (data.LETTERS.index(letter) for letter in "BE")
    single = data.LETTERS.index("S")
    cuts = [0]
    for at in range(1, len(letters)):
        if letters[at] in (begins, single) or letters[at - 1] in (ends, single):
            cuts.append(at)
    return set(zip(cuts, [*cuts[1:], len(letters)], strict=True))
