"""Special tokens in synthetic ids: what a model looks for, and random ids below the size of its table almost never hold.

A head that pools the span between two markers, or reads the place of [MASK], answers the same for every text without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import ArtifactError
from .tokenizer import load_tokenizer

MOST = 32  # of a tokenizer with hundreds of reserved tokens the last ones: markers that a user added come last
SHARE = 4  # one place in this many holds a special token


def special_ids(assets: Sequence[Path]) -> tuple[int, ...]:
    """Ids of the tokens that were added to a tokenizer ([CLS], [SEP], markers), in order; () without a tokenizer.json."""
    found = [file for file in assets if file.name == "tokenizer.json"]
    if not found:
        return ()
    try:
        added = load_tokenizer(found[0]).get_added_tokens_decoder()
    except ArtifactError:
        return ()  # whoever encodes a text is told
    ids = sorted(added)
    return tuple(ids if len(ids) <= MOST else [*ids[: MOST // 2], *ids[-MOST // 2 :]])


def sprinkle_ids(
    feeds: Mapping[str, np.ndarray], bounds: Mapping[str, int], ids: Sequence[int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Feeds whose token ids hold special tokens, in their order, at random places of every row; those of length 1 stay.

    The token ids are the inputs [..., length] that index the largest table; a tokenizer of another table changes nothing.
    """
    largest = max(bounds.values(), default=0)
    if not ids or max(ids) >= largest:
        return dict(feeds)
    made = dict(feeds)
    for name, bound in bounds.items():
        if bound != largest or feeds[name].ndim < 2 or feeds[name].shape[-1] < 2:
            continue
        array = feeds[name].copy()
        for row in array.reshape(-1, array.shape[-1]):
            count = min(len(ids), max(1, len(row) // SHARE))
            places = np.sort(rng.choice(len(row), count, replace=False))
            row[places] = np.sort(rng.choice(np.asarray(ids), count, replace=False))
        made[name] = array
    return made
