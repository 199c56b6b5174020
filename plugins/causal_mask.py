"""FusedCausalMask: what is added to the scores of a decoder. Vaswani et al. 2017, section 3.2.3, "masking out all values in the
input of the softmax which correspond to illegal connections".

    attention_mask [B, T] bool, int or float, not zero where there is a token, or None; queries, how many of the last places ask,
    or None for all; low, a finite number -> [B, 1, S, T] float32, [1, 1, S, S] without a mask

0 where key t holds a token and stands at or before the query, low elsewhere.
"""

from __future__ import annotations

import numpy as np


def reference(attention_mask: np.ndarray | None, queries: int | np.ndarray | None = None, *, low: float) -> np.ndarray:
    """The score mask, one query and one key at a time."""
    count = None if queries is None else int(np.reshape(queries, -1)[0])
    if attention_mask is None:
        assert count is not None
        attention_mask = np.ones((1, count), bool)
    batch, places = attention_mask.shape
    count = places if count is None else count
    made = np.full((batch, 1, count, places), low, np.float32)
    for query in range(count):
        for key in range(places - count + query + 1):
            made[attention_mask[:, key] != 0, 0, query, key] = 0
    return made
