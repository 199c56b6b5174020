"""Tiny encoders, decoders and steps of encoder-decoders as a user would hand them over: Python factories around transformers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bertc.factory import FactoryModel
from bertc.fuse import Fused, fuse
from bertc.source import Source, open_source

WIDTH, HEADS, WORDS, PLACES = 32, 4, 120, 62
SIDES = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}
BART = {**SIDES, "d_model": WIDTH, "vocab_size": WORDS, "max_position_embeddings": PLACES, "pad_token_id": 1}
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": HEADS, "vocab_size": WORDS}
WHISPER = {**SIDES, "d_model": WIDTH, "vocab_size": WORDS, "max_source_positions": 16, "max_target_positions": PLACES, "num_mel_bins": 8}
WHISPER |= dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), 1) | {"eos_token_id": 2}
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
    return FactoryModel(net, {"input_features": torch.randn(2, 8, 32)}, {"input_features": ("batch", 8, 32)}, ["last_hidden_state"])


def sdpa(factory: str) -> Any:
    return lambda: globals()[factory]("sdpa")


for _name in ("bart", "mbart", "t5", "gated_t5", "whisper"):
    globals()[f"{_name}_sdpa"] = sdpa(_name)


@functools.cache
def source(name: str) -> Source:
    """The Source of one of the factories of this file."""
    return open_source(f"seq2seq:{name}")


@functools.cache
def fused(name: str) -> Fused:
    """Its graph fused, every match proven."""
    made = source(name)
    return fuse(made.graph, made.dims)
