"""Tiny encoders, decoders and steps of encoder-decoders as a user would hand them over: Python factories around transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bertc.fusions.engine import Fused, fuse
from bertc.source.factory import FactoryModel
from bertc.source.opening import open_source
from bertc.source.types import Source

WIDTH, HEADS, WORDS, PLACES = 64, 4, 120, 62  # heads of 16: smaller ones get no attention kernel
SIDES = {
    f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
BART = {**SIDES, "d_model": WIDTH, "vocab_size": WORDS, "max_position_embeddings": PLACES, "pad_token_id": 1}
T5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": HEADS, "vocab_size": WORDS}
WHISPER = {
    **SIDES,
    "d_model": WIDTH,
    "vocab_size": WORDS,
    "max_source_positions": 16,
    "max_target_positions": PLACES,
    "num_mel_bins": 8,
}
WHISPER |= dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), 1) | {"eos_token_id": 2}
GPT2 = {
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS,
    "vocab_size": WORDS,
    "n_positions": PLACES,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 64, "vocab_size": WORDS}
BERT |= {"max_position_embeddings": PLACES, "is_decoder": True}
TEXT = ("input_ids", "attention_mask")


def model(name: str, config: dict[str, Any], attention: str, kind: str = "Model") -> nn.Module:
    """A seeded transformers model in which every weight matters, biases too."""
    made = getattr(transformers, f"{name}Config")(**config, attn_implementation=attention)
    torch.manual_seed(0)
    net = getattr(transformers, f"{name}{kind}")(made)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(2.0) if value.ndim > 1 else value.add_(0.1 * torch.randn(value.shape))
    return net.eval()


class Encoder(nn.Module):
    """The last hidden states alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Listener(nn.Module):
    """An encoder of sound: no mask."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder = net

    def forward(self, input_features: Tensor) -> Tensor:
        return self.encoder(input_features).last_hidden_state


def text(net: nn.Module, length: int = 12) -> FactoryModel:
    ids = 5 + torch.arange(2 * length).reshape(2, length)
    inputs = dict(zip(TEXT, (ids, torch.ones_like(ids)), strict=True))
    return FactoryModel(net, inputs, dict.fromkeys(TEXT, ("batch", "length")), ["last_hidden_state"], {"length": (1, 60)})


def bart(attention: str = "eager") -> FactoryModel:
    return text(Encoder(model("Bart", BART, attention).encoder))


def mbart(attention: str = "eager") -> FactoryModel:
    return text(Encoder(model("MBart", BART, attention).encoder))


def t5(attention: str = "eager") -> FactoryModel:
    return text(Encoder(model("T5", T5, attention, "EncoderModel")))


def gated_t5(attention: str = "eager") -> FactoryModel:
    return text(Encoder(model("T5", {**T5, "feed_forward_proj": "gated-gelu"}, attention, "EncoderModel")))


def whisper(attention: str = "eager") -> FactoryModel:
    net = Listener(model("Whisper", WHISPER, attention).encoder)
    return FactoryModel(
        net, {"input_features": torch.randn(2, 8, 32)}, {"input_features": ("batch", 8, 32)}, ["last_hidden_state"]
    )


class Decoder(nn.Module):
    """A decoder over a whole text, which reads an encoder's states where these are given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.decoder = net

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        given = {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}
        read = {name: value for name, value in given.items() if value is not None}
        return self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **read)[0]


class Step(nn.Module):
    """One token more: the cache comes in and goes out as plain tensors, two of [batch, heads, places, size] a layer.

    `attention_mask` [batch, past] says which places of the cache hold tokens; the new token's is added here, so that no
    dimension is another one plus 1.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.decoder = net

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, key_0: Tensor, value_0: Tensor, key_1: Tensor, value_1: Tensor
    ) -> tuple[Tensor, ...]:
        cache = transformers.DynamicCache()
        for layer, (key, value) in enumerate(((key_0, value_0), (key_1, value_1))):
            cache.update(key, value, layer)
        mask = torch.cat([attention_mask, torch.ones_like(input_ids)], 1)
        out = self.decoder(input_ids=input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        return out[0], *(part for layer in out.past_key_values.layers for part in (layer.keys, layer.values))


def step(net: nn.Module, past: int = 7) -> FactoryModel:
    caches = [f"{part}_{layer}" for layer in range(2) for part in ("key", "value")]
    inputs = {"input_ids": torch.tensor([[5], [6]]), "attention_mask": torch.ones(2, past, dtype=torch.int64)}
    inputs |= {name: torch.randn(2, HEADS, past, WIDTH // HEADS) for name in caches}
    dims: dict[str, tuple[int | str, ...]] = {"input_ids": ("batch", 1), "attention_mask": ("batch", "past")}
    dims |= dict.fromkeys(caches, ("batch", HEADS, "past", WIDTH // HEADS))
    return FactoryModel(Step(net).eval(), inputs, dims, ["logits", *(f"new_{name}" for name in caches)], {"past": (1, 50)})


def reader(net: nn.Module, places: int = 7, masked: bool = True) -> FactoryModel:
    inputs, dims, _ = text(Decoder(net), 10)[1:4]
    inputs = {**inputs, "memory": torch.randn(2, places, WIDTH)}
    dims = {**dims, "memory": ("batch", "places", WIDTH)}
    if masked:
        inputs["memory_mask"], dims["memory_mask"] = torch.ones(2, places, dtype=torch.int64), ("batch", "places")
    limits = {"length": (1, 50), "places": (1, 50)}
    return FactoryModel(Decoder(net).eval(), inputs, dims, ["last_hidden_state"], limits)


def gpt2(attention: str = "eager") -> FactoryModel:
    return text(Decoder(model("GPT2", GPT2, attention)))


def gpt2_step(attention: str = "eager") -> FactoryModel:
    return step(model("GPT2", GPT2, attention, "LMHeadModel"))


def bert_step(attention: str = "eager") -> FactoryModel:
    return step(model("Bert", BERT, attention, "LMHeadModel"))


def bart_decoder(attention: str = "eager") -> FactoryModel:
    return reader(model("Bart", BART, attention).decoder)


def t5_decoder(attention: str = "eager") -> FactoryModel:
    return reader(model("T5", T5, attention).decoder)


def whisper_decoder(attention: str = "eager") -> FactoryModel:
    return reader(model("Whisper", WHISPER, attention).decoder, masked=False)


def bert_decoder(attention: str = "eager") -> FactoryModel:
    return reader(model("Bert", {**BERT, "add_cross_attention": True}, attention, "LMHeadModel"))


def with_sdpa(factory: Callable[[str], FactoryModel]) -> Callable[[], FactoryModel]:
    return lambda: factory("sdpa")


for _factory in (
    bart,
    mbart,
    t5,
    gated_t5,
    whisper,
    gpt2,
    gpt2_step,
    bert_step,
    bart_decoder,
    t5_decoder,
    whisper_decoder,
    bert_decoder,
):
    globals()[f"{_factory.__name__}_sdpa"] = with_sdpa(_factory)


@functools.cache
def source(name: str) -> Source:
    """The Source of one of the factories of this file."""
    return open_source(f"seq2seq:{name}")


@functools.cache
def fused(name: str) -> Fused:
    """Its graph fused, every match proven."""
    made = source(name)
    return fuse(made.graph, made.dims)
