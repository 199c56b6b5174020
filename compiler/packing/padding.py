"""What a packed graph answers at padding: nothing, written as 0. The source's own answer there is put aside in a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core import Feeds, Outputs


def kept_positions(mask: np.ndarray, from_start: bool) -> np.ndarray:
    """[batch, length] bool: the positions that a FusedPackedLayout keeps of a mask [batch, length]."""
    live = np.asarray(mask) != 0
    if not from_start:
        return live | ~live.any(axis=1, keepdims=True)
    before_last = np.maximum.accumulate(live[:, ::-1], axis=1)[:, ::-1]
    return before_last | ~live[:, :1]


def zero_padding(outputs: Outputs, feeds: Feeds, facts: Mapping[str, Any]) -> Outputs:
    """Outputs per position with 0 at the positions that a packed graph does not compute; the others as they are.

    `facts`: what the manifest says under "packing"; {} of an artifact that is not packed.
    """
    named, mask = facts.get("outputs") or (), feeds.get(str(facts.get("mask")))
    if not named or mask is None:
        return outputs
    kept = kept_positions(mask, bool(facts.get("from_start")))

    def blanked(array: np.ndarray) -> np.ndarray:
        if array.shape[:2] != kept.shape:
            return array
        return np.where(kept.reshape(kept.shape + (1,) * (array.ndim - 2)), array, np.zeros((), array.dtype))

    return {name: blanked(array) if name in named else array for name, array in outputs.items()}
