"""What the decoder learns from: rows of tokens, who sees whom, and what is to be told where.

Together: masked LM (Devlin et al. 2019, section 3.1); permuted LM (Yang et al. 2019, "XLNet", section 2.3: a content and a query
stream, here side by side in one row, as in Song et al. 2020, "MPNet", section 2.2); mask-position prediction: tokens lose their
place, which is told among all places (after Cui et al. 2022, "PERT"). Then left to right, on replies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from . import data

SHARE = 0.15  # of tokens that are hidden, permuted, or without a place
Pair = tuple[list[int], int]  # tokens, and where the reply begins


@dataclasses.dataclass(frozen=True)
class Rows:
    """`wanted` [rows, length] is what a position should tell, IGNORED elsewhere: a word, or a place where `lost` is given."""

    words: np.ndarray
    places: np.ndarray
    seen: np.ndarray
    wanted: np.ndarray
    lost: np.ndarray | None = None


IGNORED = -100


def masked(pairs: Sequence[Pair], rng: np.random.Generator) -> Rows:
    """Every token sees all; hidden ones are told."""
    words, live = _padded(pairs)
    hidden = _chosen(words, live, rng)
    rows = _seeing_all(words, live)
    return dataclasses.replace(rows, words=np.where(hidden, data.HIDDEN, words), wanted=np.where(hidden, words, IGNORED))


def positions(pairs: Sequence[Pair], rng: np.random.Generator) -> Rows:
    """Every token sees all; some have no place, which is told."""
    words, live = _padded(pairs)
    lost = _chosen(words, live, rng)
    rows = _seeing_all(words, live)
    return dataclasses.replace(rows, wanted=np.where(lost, rows.places, IGNORED), lost=lost)


def permuted(pairs: Sequence[Pair], rng: np.random.Generator) -> Rows:
    """Behind the tokens stands a hidden one for each that is told, at its place: it sees what is not told, what is told before it
    in a random order, and itself, never the token that it tells."""
    words, live = _padded(pairs)
    told = _chosen(words, live, rng)
    rows, length = words.shape
    most = max(1, int(told.sum(1).max()))
    found = _seeing_all(np.pad(words, ((0, 0), (0, most))), np.pad(live, ((0, 0), (0, most))))
    wanted = np.full((rows, length + most), IGNORED)
    for row in range(rows):
        order = rng.permutation(np.flatnonzero(told[row]))
        turn = np.full(length, -1)  # of what is not told: before all others
        turn[order] = np.arange(len(order))
        at = length + np.arange(len(order))
        found.words[row, at], found.places[row, at], wanted[row, at] = data.HIDDEN, order, words[row, order]
        found.seen[row, :length, :length] &= turn[None, :] <= turn[:, None]
        found.seen[row, at, :length] = live[row] & (turn[None, :] < np.arange(len(order))[:, None])
        found.seen[row, at, at] = True
    return dataclasses.replace(found, wanted=wanted)


def left_to_right(pairs: Sequence[Pair], rng: np.random.Generator) -> Rows:
    """Every token sees those before it, and tells the next one of the reply."""
    del rng
    words, live = _padded(pairs)
    rows, wanted = _seeing_all(words, live), np.full(words.shape, IGNORED)
    for row, (tokens, reply) in enumerate(pairs):
        wanted[row, reply - 1 : len(tokens) - 1] = tokens[reply:]
    wanted[wanted == data.UNKNOWN] = IGNORED
    return dataclasses.replace(rows, seen=rows.seen & np.tri(words.shape[1], dtype=bool), wanted=wanted)


TOGETHER: tuple[Callable[[Sequence[Pair], np.random.Generator], Rows], ...] = (masked, permuted, positions)


def _padded(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(tokens) for tokens, _ in pairs)
    words = np.array([tokens + [data.PAD] * (longest - len(tokens)) for tokens, _ in pairs])
    return words, words != data.PAD


def _chosen(words: np.ndarray, live: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return live & (words >= len(data.SPECIAL)) & (rng.random(words.shape) < SHARE)


def _seeing_all(words: np.ndarray, live: np.ndarray) -> Rows:
    rows, length = words.shape
    places = np.broadcast_to(np.arange(length), words.shape).copy() % data.LENGTH
    seen = np.broadcast_to(live[:, None, :], (rows, length, length)).copy()
    return Rows(words.copy(), places, seen, np.full(words.shape, IGNORED))
