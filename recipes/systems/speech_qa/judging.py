"""Of clips by voices that were not learned: whose question it is, what is rejected rightly and wrongly, and the letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import bertc

from ..running import BASELINE, TRAINED
from .data import LETTERS

WANTED = 0.05  # of what is not in the list, the share that may be taken for a question of it
BATCH = 16
Arrays = Mapping[str, np.ndarray]
Run = Callable[[dict[str, np.ndarray]], Arrays]


def judge(artifacts: Mapping[str, Path]) -> dict[str, float]:
    trained = artifacts[TRAINED]
    found = judged_by(bertc.load(artifacts["listener"]).run, dict(np.load(trained / "clips.npz")))
    known = json.loads((trained / "training.json").read_text("utf-8"))["torch"]
    return found | {f"{BASELINE}untrained, {name}": value for name, value in known["untrained"].items()}


def judged_by(run: Run, clips: Arrays) -> dict[str, float]:
    """Recall is the nearest of the list's vectors, each the mean of its enrolled clips. Of every number more is better: the
    rates of false accepts and rejects are 1 minus those of right rejects and accepts."""
    parts = {name.partition(".")[0] for name in clips}
    heard = {name: _heard(run, clips[f"{name}.clips"]) for name in parts}
    listed = centres(heard["enrolled"][0], clips["enrolled.number"])
    near = {name: vectors @ listed.T for name, (vectors, _) in heard.items()}
    level = threshold(near["set unknown"].max(1))
    right = near["known"].argmax(1) == clips["known.number"]
    taken = near["known"].max(1) >= level
    return {
        "right question": float(right.mean()),
        "right question and taken": float((right & taken).mean()),
        "right accepts": float(taken.mean()),
        "right rejects": float((near["unknown"].max(1) < level).mean()),
        "letters": letters_right(heard["known"][1], clips["known.texts"]),
    }


def threshold(unknown: np.ndarray) -> float:
    """The least similarity that is taken: at most WANTED of the unknown clips that set it reach it."""
    allowed = int(WANTED * len(unknown))
    return float(np.nextafter(np.sort(unknown)[::-1][allowed], np.float32(2)))


def centres(vectors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The mean vector of each number, of length 1."""
    means = np.stack([vectors[numbers == at].mean(0) for at in range(int(numbers.max()) + 1)])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def _heard(run: Run, clips: np.ndarray) -> tuple[np.ndarray, list[str]]:
    vectors, texts = [], []
    for at in range(0, len(clips), BATCH):
        made = run({"input_values": clips[at : at + BATCH]})
        vectors.append(np.asarray(made["vector"], np.float32))
        texts += [spelled(row) for row in np.asarray(made["logits"]).argmax(-1)]
    return np.concatenate(vectors), texts


def spelled(frames: np.ndarray) -> str:
    """Greedy CTC: repeated symbols become one, blanks go."""
    kept = (frames != 0) & np.append(True, frames[1:] != frames[:-1])
    return "".join(LETTERS[at] for at in frames[kept])


def letters_right(texts: list[str], wanted: np.ndarray) -> float:
    """1 minus the share of letters to be changed, of all letters; 0 where more are wrong than there are."""
    import jiwer

    return max(0.0, 1.0 - float(jiwer.cer([str(each) for each in wanted], texts)))
