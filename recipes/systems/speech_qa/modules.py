"""The network: wav2vec 2.0's form (Baevski et al. 2020), small; a vector of the clip and letters of its frames.

Frames are pooled by learned attention (Safari et al. 2020, "Self-Attention Encoding and Pooling for Speaker Recognition").
The first convolution begins as band-pass filters on the mel scale (Zeghidour et al. 2018, "Learning Filterbanks from Raw
Speech"): from noise nothing was learned in 200 steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

HEADS, VECTOR, BANDS = 4, 128, 48
CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": (2 * BANDS, 128),  # two convolutions in the place of seven, 20 ms a frame as there
    "conv_kernel": (400, 8),
    "conv_stride": (80, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "do_stable_layer_norm": True,  # norms in front: it learns faster from nothing
    "apply_spec_augment": False,
}


class Listener(nn.Module):
    """input_values [batch, samples] -> vector [batch, VECTOR] of length 1, logits [batch, frames, letters]."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        kind: Any = Wav2Vec2Model
        self.encoder = kind._from_config(Wav2Vec2Config(**CONFIG), attn_implementation="eager")
        with torch.no_grad():
            self.encoder.feature_extractor.conv_layers[0].conv.weight.copy_(filters().unsqueeze(1))
        width = int(CONFIG["hidden_size"])
        self.letters = nn.Linear(width, letters)
        self.asked, self.vector = nn.Linear(width, HEADS), nn.Linear(HEADS * width, VECTOR)

    def forward(self, input_values: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.encoder(input_values).last_hidden_state
        pooled = (self.asked(frames).softmax(1).transpose(1, 2) @ frames).flatten(1)
        return nn.functional.normalize(self.vector(pooled), dim=-1), self.letters(frames)


def filters() -> Tensor:
    """Cosines and sines of BANDS frequencies, 60 Hz to 7 kHz on the mel scale, under a Hann window: [2 * BANDS, samples]."""
    size = int(CONFIG["conv_kernel"][0])
    mels = torch.linspace(2595 * math.log10(1 + 60 / 700), 2595 * math.log10(1 + 7000 / 700), BANDS)
    turns = (700 * (10 ** (mels / 2595) - 1))[:, None] * torch.arange(size) / 16000 * 2 * math.pi
    waves = torch.cat([turns.cos(), turns.sin()]) * torch.hann_window(size)
    return waves / waves.norm(dim=1, keepdim=True)
