"""Neurons of feed-forward networks that go, as many in each layer: so a Hugging Face config can still say it.

Importance: importance.py (Molchanov et al., 2019). A neuron is one input of the second matrix, so without it the model is the one
in which it gives 0.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from ..core import Progress
from ..distill import Net
from .importance import taylor, worth
from .parts import columns_kept, parts_of, rounded, rows_kept
from .step import Step, Work

WIDTHS = ("intermediate_size", "hidden_dim")  # in a config; DistilBERT has its own name


def neurons_kept(whole: int, share: float, multiple: int) -> tuple[int, str]:
    """(how many stay, what rounding did). InputError where all would."""
    return rounded((1 - share) * whole, whole, multiple, "FFN neurons")


def prune(work: Work, share: float, multiple: int, log: Progress) -> Step:
    """Take `share` of the neurons out, rounded to `multiple`."""
    parts = parts_of(work.net)
    whole = parts[0].neurons
    count, note = neurons_kept(whole, share, multiple)
    with log.stage("importance of FFN neurons") as advance:
        tables = taylor(work.net, work.encoded, [each.get(each.second) for each in parts], work.seed, advance)
    scores = [worth(table) for table in tables]
    kept = [score.topk(count).indices.sort().values for score in scores]
    net = with_neurons(work.net, kept)
    lost = [float(1 - score[rows].sum() / score.sum().clamp(min=1e-300)) for score, rows in zip(scores, kept, strict=True)]
    facts = {"before": whole, "after": count, "importance_gone": lost}
    said = f"FFN {whole} -> {count} neurons in each of {len(parts)} layers"
    return Step("prune_ffn", net, said, facts, work.layers, notes=(note,) if note else ())


def with_neurons(net: Net, kept: Sequence[Tensor]) -> Net:
    """A copy that has these neurons alone, by layer."""
    made = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    for parts, rows in zip(parts_of(made), kept, strict=True):
        parts.set(parts.first, rows_kept(parts.get(parts.first), rows))
        parts.set(parts.second, columns_kept(parts.get(parts.second), rows))
    config = made.model.config
    for name in WIDTHS:
        if hasattr(config, name):
            setattr(config, name, len(kept[0]))
    return made
