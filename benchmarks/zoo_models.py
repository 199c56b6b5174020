"""The zoo's models in PyTorch: made from their rows, or written here. What a user would call `torch.onnx.export` with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from .zoo import HEADS, LENGTH, ROWS, VOCABULARY, Input, inputs


def build(name: str, attention: str) -> nn.Module:
    """A model of the zoo with `attention` ("sdpa" or "eager"), seeded. Raises what transformers raises."""
    row = ROWS[name]
    torch.manual_seed(0)
    if row.model == "minilm_real":
        return _real(attention)
    if row.model == "own":
        return _random(Own(attention))
    config = getattr(transformers, row.config)(**row.settings)
    if hasattr(config, "use_cache"):
        config.use_cache = row.inputs == "past"
    config._attn_implementation = attention
    model = getattr(transformers, "BertModel" if row.model == "minilm" else row.model)._from_config(
        config, attn_implementation=attention
    )
    model = getattr(model, row.part)() if row.part else model
    _random(model)
    if row.model == "minilm":
        return Embedding(model)
    return Step(model) if row.inputs == "past" else model


def given(name: str, model: nn.Module) -> dict[str, Input]:
    """The inputs of a built model, in the order of its forward."""
    inner: Any = getattr(model, "model", model)
    takes = "token_type_ids" in inspect.signature(model.forward).parameters and ROWS[name].inputs in ("text", "unmasked")
    types = getattr(getattr(inner, "config", None), "type_vocab_size", 0) or 0
    return inputs(name, types=takes and types > 1)


def padding(model: nn.Module) -> int:
    """The id that stands at masked places."""
    inner: Any = getattr(model, "model", model)
    return int(getattr(getattr(inner, "config", None), "pad_token_id", None) or 0)


def example(given: dict[str, Input]) -> dict[str, Tensor]:
    """What the exporter sees: batch 2, nothing masked."""
    from .zoo import feeds

    return {name: torch.from_numpy(array) for name, array in feeds(given, "none", batch=2, step=0, seed=1).items()}


def outputs(model: nn.Module, fed: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model answers, flat and by name."""
    made = model(**fed)
    named = (
        made.items()
        if hasattr(made, "items")
        else ((f"output_{i}", t) for i, t in enumerate(made if isinstance(made, tuple) else (made,)))
    )
    return {
        name if len(flat) == 1 else f"{name}_{i}": tensor
        for name, value in named
        for flat in ([value] if isinstance(value, Tensor) else list(value),)
        for i, tensor in enumerate(flat)
    }


def _random(model: nn.Module) -> nn.Module:
    """Biases and norms are drawn too; matrices keep the spread of their initialisation."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2:
                value.add_(0.1 * torch.randn(value.shape))
            elif float(value.std()) < 0.05:
                value.copy_(0.1 * torch.randn(value.shape))
    return model.eval()


def _real(attention: str) -> nn.Module:
    from .tools import MODEL

    return Embedding(transformers.AutoModel.from_pretrained(MODEL, attn_implementation=attention)).eval()


class Positional(nn.Module):
    """Tensors in by position, a tuple out: the TorchScript exporter cannot pass keywords to the models of transformers 5."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs(self.model, dict(zip(self.names, tensors, strict=True))).values())


class Embedding(nn.Module):
    """A sentence embedding as its users write it: the mean over tokens, of unit length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        places = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * places).sum(1) / places.sum(1).clamp(min=1e-9), dim=-1)


class Step(nn.Module):
    """A decoder over tokens that follow a past: flat keys and values in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_0_key: Tensor,
        past_0_value: Tensor,
        past_1_key: Tensor,
        past_1_value: Tensor,
    ) -> tuple[Tensor, ...]:
        cache = transformers.DynamicCache(((past_0_key, past_0_value), (past_1_key, past_1_value)))
        made = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return (made.logits, *(t for layer in made.past_key_values.layers for t in (layer.keys, layer.values)))


class Mixer(nn.Module):
    """Pre-norm attention over one fused projection, then a GELU network. Imitates no library."""

    def __init__(self, width: int, heads: int, attention: str) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.pre_a, self.pre_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.thin = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.into(self.pre_a(x)).chunk(3, dim=-1))
        if self.attention == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~ignored[:, None, None, :])
        else:
            scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            mixed = scores.masked_fill(ignored[:, None, None, :], -1e9).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.thin(F.gelu(self.wide(self.pre_b(x)), approximate="tanh"))


class Own(nn.Module):
    """A custom encoder: own names, a key padding mask made inside, learned positions, one pooled row and a head."""

    def __init__(self, attention: str, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(5 * LENGTH, width)
        self.stages = nn.ModuleList(Mixer(width, HEADS, attention) for _ in range(depth))
        self.last, self.judge = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        ignored = attention_mask == 0
        for stage in self.stages:
            x = stage(x, ignored)
        x = self.last(x).masked_fill(ignored[..., None], 0.0)
        return self.judge(x.sum(1) / attention_mask.sum(1, keepdim=True))
