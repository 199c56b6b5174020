"""Whether padding changes the rows of a model: tried on the loaded runner, before rows of several requests share a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .batches import Batching

if TYPE_CHECKING:
    from ..data import Encoder
    from ..runtime import Runner

ALIKE, SAME = 1e-2, 1e-4  # how far a row may be from itself in a batch: not padded beyond the first, said beyond the second
SHORT, LONG = "one", "one text of many words, long enough that the other one is mostly padding beside it"


def try_padding(runner: Runner, batching: Batching, encoder: Encoder | None) -> tuple[Batching, str]:
    """(how rows may share a batch, what to say of it)."""
    if batching.length is None:
        return batching, ""
    if encoder is None:
        why = "without a tokenizer nothing was tried on padding: only rows of one length share a batch"
        return batching.unpadded(why), why
    rows = [encoder.encode([text]) for text in (SHORT, LONG)]
    alone = runner.run(rows[0])
    own = batching.split(runner.run(batching.stack(rows)), rows)[0]
    return judge(batching, max((distance(own[name], value) for name, value in alone.items()), default=0.0))


def judge(batching: Batching, error: float) -> tuple[Batching, str]:
    """(how rows may share a batch, what to say of it), for how far a row in a padded batch is from itself alone."""
    if error > ALIKE or math.isnan(error):
        why = f"a row in a padded batch is {error:.1e} from itself alone: only rows of one length share a batch"
        return batching.unpadded(why), why
    if error > SAME:
        return batching, f"a row in a padded batch is {error:.1e} from itself alone (int8 with dynamic scales, or half precision)"
    return batching, ""


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    difference = np.abs(got.astype(np.float64) - wanted).max(initial=0.0)
    return float(difference / max(float(np.abs(wanted).max(initial=0.0)), 1e-12))
