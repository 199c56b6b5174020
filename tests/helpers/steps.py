"""Factories of models whose sizes depend on each other, or whose rows lie on other axes: decoder steps, rankers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertc import FactoryModel

WIDTH, HEADS, SIZE, LAYERS, WORDS = 32, 2, 16, 2, 50
LOW = -10000.0


def bias_of(mask: Tensor) -> Tensor:
    return (1.0 - mask[..., None, None, :].to(torch.float32)) * LOW


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], HEADS, SIZE).transpose(-2, -3)

    def forward(self, x, bias, k=None, v=None, others=None):
        read = x if others is None else others
        keys, values = self.heads(self.k(read)), self.heads(self.v(read))
        if k is not None:
            keys, values = torch.cat([k, keys], -2), torch.cat([v, values], -2)
        seen = (self.heads(self.q(x)) @ keys.transpose(-1, -2) / 4 + bias).softmax(-1) @ values
        return self.norm(x + self.o(seen.transpose(-2, -3).reshape(x.shape))), keys, values


class Model(nn.Module):
    def __init__(self, outputs: int = WORDS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, outputs)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))


class Stacked(Model):
    """All caches in one tensor [keys and values of each layer, batch, heads, past, size]."""

    def forward(self, input_ids, mask, past):
        x, new = self.words(input_ids), []
        for at, layer in enumerate(self.layers):
            x, *made = layer(x, bias_of(mask), past[2 * at], past[2 * at + 1])
            new += made
        return {"logits": self.head(x), "present": torch.stack(new)}


class EncoderDecoder(Model):
    """A step of a decoder that reads an encoder's states, with a cache for itself."""

    def forward(self, input_ids, mask, states, states_mask, k, v):
        x, k, v = self.layers[0](self.words(input_ids), bias_of(mask), k, v)
        x, _, _ = self.layers[1](x, bias_of(states_mask), others=states)
        return {"logits": self.head(x), "present_k": k, "present_v": v}


class Halves(Model):
    """A mask over two copies of what is read."""

    def forward(self, ids, mask):
        x = self.words(ids)
        return self.head(self.layers[0](x, bias_of(mask), others=torch.cat([x, 2 * x], 1))[0][:, 0])


class Inner(Model):
    """One number for each position but the ends: torch.export takes these for the symbol, and the length for it + 2."""

    def forward(self, ids, inner):
        return self.layers[0](self.words(ids)[:, 1:-1] + inner.unsqueeze(-1), torch.zeros(()))[0].mean(1)


class Ranker(Model):
    def forward(self, input_ids, attention_mask):
        queries, candidates, length = input_ids.shape
        x, mask = (each.reshape(queries * candidates, length) for each in (input_ids, attention_mask))
        x = self.words(x)
        for layer in self.layers:
            x, _, _ = layer(x, bias_of(mask))
        return self.head(x[:, 0]).reshape(queries, candidates)


class Windows(Model):
    def __init__(self) -> None:
        super().__init__(outputs=3)
        self.frames = nn.Conv1d(1, WIDTH, 8, 4)

    def forward(self, values):
        batch, windows, length = values.shape
        x = self.frames(values.reshape(batch * windows, 1, length)).transpose(1, 2)
        return self.head(self.layers[0](x, torch.zeros(()))[0].mean(1)).reshape(batch, windows, 3)


def stacked(mask: str = "past + 1", limits=None) -> FactoryModel:
    inputs = {"input_ids": ones(2, 1), "mask": ones(2, 6), "past": torch.randn(2 * LAYERS, 2, HEADS, 5, SIZE)}
    dims = {"input_ids": ("batch", 1), "mask": ("batch", mask), "past": (2 * LAYERS, "batch", HEADS, "past", SIZE)}
    return FactoryModel(Stacked().eval(), inputs, dims, limits=limits)


def from_nothing() -> FactoryModel:
    return stacked(limits={"past": (0, 64)})


def several_words() -> FactoryModel:
    made = stacked("past + length")
    inputs = {**made.inputs, "input_ids": ones(2, 3), "mask": ones(2, 8)}
    return made._replace(inputs=inputs, dims={**made.dims, "input_ids": ("batch", "length")})


def encoder_decoder() -> FactoryModel:
    cache = torch.randn(2, HEADS, 5, SIZE)
    inputs = {"input_ids": ones(2, 1), "mask": ones(2, 6), "states": torch.randn(2, 7, WIDTH), "states_mask": ones(2, 7)}
    dims = {
        "input_ids": ("rows", 1),
        "mask": ("rows", "1+past"),
        "states": ("rows", "source", WIDTH),
        "states_mask": ("rows", "source"),
    }
    caches = dict.fromkeys(("k", "v"), ("rows", HEADS, "past", SIZE))
    return FactoryModel(EncoderDecoder().eval(), {**inputs, "k": cache, "v": cache + 1}, {**dims, **caches})


def halves() -> FactoryModel:
    dims = {"ids": ("batch", "length"), "mask": ("batch", "2*length")}
    return FactoryModel(Halves(3).eval(), {"ids": ones(2, 6), "mask": ones(2, 12)}, dims)


def inner() -> FactoryModel:
    dims = {"ids": ("batch", "length"), "inner": ("batch", "length - 2")}
    return FactoryModel(Inner().eval(), {"ids": ones(2, 9), "inner": torch.randn(2, 7)}, dims)


def ranker() -> FactoryModel:
    dims = dict.fromkeys(("input_ids", "attention_mask"), ("queries", "candidates", "length"))
    return FactoryModel(Ranker(1).eval(), {name: ones(2, 3, 12) for name in dims}, dims, outputs=["scores"])


def windows() -> FactoryModel:
    dims = {"values": ("batch", "windows", "length")}
    return FactoryModel(Windows().eval(), {"values": torch.randn(2, 3, 90)}, dims, limits={"length": (8, 400)})
