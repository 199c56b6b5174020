"""The network: a tag and characters through an encoder, pairs of characters beside it, and a letter for each character.

Bigram embeddings: Chen et al. 2015, "Long Short-Term Memory Neural Networks for Chinese Word Segmentation"; the criterion as the
first token of the input: He et al. 2019, "Effective Neural Solution for Multi-Criteria Word Segmentation"; a joint loss with the
criterion's classification: Chen et al. 2017, "Adversarial Multi-Criteria Learning", section 4, without its adversary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, INNER = 128, 4, 2, 512
LONGEST = 64


class Layer(nn.Module):
    """An encoder layer, its norms in front (Xiong et al. 2020): it learns faster from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding)[0]
        return x + self.inner(self.between(x))


class Segmenter(nn.Module):
    """input_ids, attention_mask [batch, length] and bigrams [batch, length, 2] -> letters [batch, length, 4] and
    granularity [batch, 2].

    The first position holds the tag. `bigrams` are the pairs that a character makes with the one before and the one behind it.
    Without `paired` they are not read, for comparison.
    """

    def __init__(self, characters: int, bigrams: int, letters: int, granularities: int, paired: bool = True) -> None:
        super().__init__()
        self.paired = paired
        self.characters = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pairs = nn.Embedding(bigrams, WIDTH // 2)
        self.fuse = nn.Linear(2 * WIDTH, WIDTH)
        self.fused_norm, self.mixed_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, letters))
        self.granularity = nn.Linear(WIDTH, granularities)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, bigrams: Tensor) -> tuple[Tensor, Tensor]:
        padding = attention_mask == 0
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.characters(input_ids) + self.positions(places))
        for layer in self.layers:
            x = layer(x, padding)
        if self.paired:
            x = self.fused_norm(x + self.fuse(torch.cat([x, self.pairs(bigrams).flatten(2)], -1)))
        x = self.mixed_norm(x + self.attention(x, x, x, key_padding_mask=padding)[0])
        kept = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.decoder(x), self.granularity((x * kept).sum(1) / kept.sum(1))
