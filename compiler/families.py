"""What each model family promises to fuse into: per transformer layer, and once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ENCODER = {"attention": 1, "skip_layernorm": 2, "bias_gelu": 1}
READER = {"attention": 1, "cross_attention": 1, "skip_layernorm": 3, "bias_gelu": 1}
ONCE = {"embeddings": 1, "mask": 1}


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
    # Encoders of encoder-decoders. T5 has no GELU with a bias, and its positions are a bias of the scores; Whisper has no mask.
    "bart": Family(ENCODER, ONCE),
    "mbart": Family(ENCODER, ONCE),
    "t5": Family({"attention": 1, "skip_layernorm": 2}, {"mask": 1}),
    "whisper": Family(ENCODER, {}),
    # Decoders: over a whole text, one step with a cache, and those that read an encoder.
    "gpt2": Family({"attention": 1, "skip_layernorm": 2}, {"causal": 1}),
    "gpt2-step": Family({"past_attention": 1, "skip_layernorm": 2}, {"causal": 1}),
    "bert-step": Family({"past_attention": 1, "skip_layernorm": 2, "bias_gelu": 1}, {"embeddings": 1, "causal": 1}),
    "bert-decoder": Family(READER, {**ONCE, "causal": 1}),
    "bart-decoder": Family(READER, {**ONCE, "causal": 1}),
    "t5-decoder": Family({"attention": 1, "cross_attention": 1, "skip_layernorm": 3}, {"mask": 1, "causal": 1}),
    "whisper-decoder": Family(READER, {"causal": 1}),
}


def promised(name: str, layers: int) -> dict[str, int]:
    """Matches of each rule that a model of so many layers promises."""
    family = FAMILIES[name]
    return {rule: count * layers for rule, count in family.per_layer.items()} | dict(family.once)
