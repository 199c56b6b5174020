"""What each model family promises to fuse into: per transformer layer, and once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ENCODER = {"attention": 1, "skip_layernorm": 2, "bias_gelu": 1}
ONCE = {"embeddings": 1, "mask": 1}
# Every wav2vec 2.0 and HuBERT has 7 convolutions and a positional one, and a norm before the first layer (base) or behind the
# last (large). A mask is one of samples, made one of frames in the middle of the network, where there is any: no promise.
SPEECH = {"conv1d_gelu": 8, "skip_layernorm": 1}


@dataclasses.dataclass(frozen=True)
class Family:
    """Matches per layer and once, by rule."""

    per_layer: Mapping[str, int]
    once: Mapping[str, int]


FAMILIES: Mapping[str, Family] = {
    "bert": Family(ENCODER, ONCE),
    "distilbert": Family(ENCODER, ONCE),
    "roberta": Family(ENCODER, ONCE),
    "xlm-roberta": Family(ENCODER, ONCE),
    "camembert": Family(ENCODER, ONCE),
    "electra": Family(ENCODER, ONCE),
    "albert": Family(ENCODER, ONCE),
    "mpnet": Family(ENCODER, ONCE),
    "wav2vec2": Family(ENCODER, SPEECH),
    "hubert": Family(ENCODER, SPEECH),
}


def promised(name: str, layers: int) -> dict[str, int]:
    """Matches of each rule that a model of so many layers promises."""
    family = FAMILIES[name]
    rules = {**family.per_layer, **family.once}
    return {rule: family.per_layer.get(rule, 0) * layers + family.once.get(rule, 0) for rule in rules}
