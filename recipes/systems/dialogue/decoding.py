"""Greedy and beam search around a step of one token. A prompt is read by the same steps, shorter ones padded on the left.

Beam search keeps the `width` best beginnings by the sum of their log chances; an end is judged by its sum over its length to the
power of ALPHA (Wu et al. 2016, "Google's Neural Machine Translation System", section 7, without its coverage).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from scipy.special import log_softmax

from .data import END, PAD

ALPHA = 0.7
Arrays = Mapping[str, np.ndarray]
Run = Callable[[dict[str, np.ndarray]], Arrays]


class Scorer(Protocol):
    """Tokens [rows] in, of which `live` are no padding; scores of the next [rows, words] out."""

    def next(self, tokens: np.ndarray, live: np.ndarray) -> np.ndarray: ...
    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order; one may come several times."""


class Steps:
    """A built step and the caches between its calls: `shapes` are those of its inputs past..., 0 where rows or past stand."""

    def __init__(self, run: Run, shapes: Mapping[str, Sequence[int]], rows: int) -> None:
        self.run, self.mask = run, np.zeros((rows, 0), np.int64)
        self.axis = {name: len(shape) - 4 for name, shape in shapes.items()}  # [..., batch, heads, past, size]
        self.caches = {name: np.zeros(_at(shape, rows), np.float32) for name, shape in shapes.items()}
        self.feeds: dict[str, np.ndarray] = {}

    def next(self, tokens: np.ndarray, live: np.ndarray) -> np.ndarray:
        self.mask = np.concatenate([self.mask, live.astype(np.int64)[:, None]], 1)
        self.feeds = {"input_ids": tokens[:, None].astype(np.int64), "mask": self.mask, **self.caches}
        made = self.run(self.feeds)
        self.caches = {name: np.asarray(made[name.replace("past", "present")], np.float32) for name in self.caches}
        return np.asarray(made["logits"], np.float32)[:, 0]

    def keep(self, rows: np.ndarray) -> None:
        self.mask = self.mask[rows]
        self.caches = {name: array.take(rows, self.axis[name]) for name, array in self.caches.items()}


def _at(shape: Sequence[int], rows: int) -> tuple[int, ...]:
    return (*shape[:-4], rows, shape[-3], 0, shape[-1])


def read_prompts(scorer: Scorer, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Scores of the first token of each reply."""
    longest = max(map(len, prompts))
    ids = np.array([[PAD] * (longest - len(each)) + list(each) for each in prompts])
    live = np.array([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    for at in range(longest):
        scores = scorer.next(ids[:, at], live[:, at])
    return scores


def greedy(scorer: Scorer, prompts: Sequence[Sequence[int]], steps: int) -> np.ndarray:
    """The likeliest token, `steps` times, whether or not an END comes: [prompts, steps]."""
    scores, found = read_prompts(scorer, prompts), []
    for at in range(steps):
        found.append(scores.argmax(-1))
        if at + 1 < steps:
            scores = scorer.next(found[-1], np.ones(len(prompts)))
    return np.stack(found, 1)


def beam(scorer: Scorer, prompt: Sequence[int], steps: int, width: int = 4) -> list[int]:
    """The best reply of at most `steps` tokens, END included. The scorer has `width` rows."""
    scores = read_prompts(scorer, [prompt] * width)
    sums, said = np.where(np.arange(width) == 0, 0.0, -np.inf), [list[int]() for _ in range(width)]
    ended: list[tuple[float, list[int]]] = []
    for step in range(steps):
        chances = sums[:, None] + log_softmax(scores.astype(np.float64), axis=-1)
        best = np.argsort(-chances, axis=None, kind="stable")[: 2 * width]  # half of them may be ends
        rows, tokens = np.unravel_index(best, chances.shape)
        length = float(step + 1) ** ALPHA
        ended += [(chances[r, t] / length, [*said[r], END]) for r, t in zip(rows, tokens, strict=True) if t == END]
        going = [(int(r), int(t)) for r, t in zip(rows, tokens, strict=True) if t != END][:width]
        sums, said = np.array([chances[r, t] for r, t in going]), [[*said[r], t] for r, t in going]
        if step + 1 == steps or (ended and max(ended)[0] >= sums.max() / float(steps) ** ALPHA):
            break  # what goes on can only lose
        scorer.keep(np.array([r for r, _ in going]))
        scores = scorer.next(np.array([t for _, t in going]), np.ones(width))
    ended += [(each / float(len(words)) ** ALPHA, words) for each, words in zip(sums, said, strict=True)]
    return max(ended)[1]
