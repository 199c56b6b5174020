"""The fusion contract of each model family: matches per transformer layer, and once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..core import RecipeError, did_you_mean

ENCODER = {"attention": 1, "skip_layernorm": 2, "bias_gelu": 1}
READER = {"attention": 1, "cross_attention": 1, "skip_layernorm": 3, "bias_gelu": 1}
ONCE = {"embeddings": 1, "mask": 1}
# Every wav2vec 2.0 and HuBERT has 7 convolutions and a positional one, and a norm before the first layer (base) or behind the
# last (large). A mask is one of samples, made one of frames in the middle of the network, where there is any: no contract.
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
    # Its GELU is gated and has no bias; of its two masks the local one is a window, which is no padding mask.
    "modernbert": Family({"rotary_attention": 1, "skip_layernorm": 2}, ONCE),
    # Its mask is one of pairs: a padded query attends to nothing, so it is no FusedScoreMask.
    "deberta-v2": Family({"disentangled_attention": 1, "skip_layernorm": 2, "bias_gelu": 1}, {"embeddings": 1}),
    # Half of its heads are convolutions made from the query, behind the same output projection: attention stops at the softmax.
    "convbert": Family({"sdpa": 1, "skip_layernorm": 2, "bias_gelu": 1}, ONCE),
    # Its projections are grouped convolutions, with their bias inside.
    "squeezebert": Family({"sdpa": 1, "skip_layernorm": 2}, ONCE),
    # Queries and keys come from a bottleneck, values from the layer's input. Its norms only scale and shift, its activation is a
    # ReLU, and its embeddings are three words side by side.
    "mobilebert": Family({"sdpa": 1}, {"mask": 1}),
    # Raw audio: convolutions in place of embeddings, and no mask where its feature extractor makes none.
    "wavlm": Family({"attention": 1, "skip_layernorm": 2, "bias_gelu": 1}, {}),
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


def parse(family: str) -> tuple[str, int | None]:
    """`bert:6` as (name, number of layers, None where it is not given). RecipeError for what is no family or no number."""
    name, colon, layers = family.partition(":")
    if name not in FAMILIES:
        raise RecipeError(f"unknown family {name!r}{did_you_mean(name, FAMILIES)}")
    if colon and not (layers.isdecimal() and int(layers)):
        raise RecipeError(f"{family!r}: {layers!r} is no number of layers, as in {name}:6")
    return name, int(layers) if colon else None


def expected_counts(name: str, layers: int) -> dict[str, int]:
    """Matches of each rule in the contract of a model with so many layers."""
    family = FAMILIES[name]
    rules = {**family.per_layer, **family.once}
    return {rule: family.per_layer.get(rule, 0) * layers + family.once.get(rule, 0) for rule in rules}
