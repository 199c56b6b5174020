"""Speech models with random weights, for a machine that has no checkpoint: wav2vec 2.0 with a CTC head, as factories of bertc.

The architecture is that of transformers; the weights are seeded noise, biases and norms included, so that every part of the model
shows in its output and costs what it costs with trained weights. An artifact made of them recognises nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bertc.source.factory import FactoryModel

# wav2vec2-base: the defaults of Wav2Vec2Config. Two frames, the least that can be exported, are 720 samples of 16 kHz audio.
BASE: dict[str, Any] = {"vocab_size": 32}
STUDENT: dict[str, Any] = {
    **BASE,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": (64,) * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
TWO_FRAMES, EXAMPLE = 720, 3200


class Speech(nn.Module):
    """input_values float32 [batch, samples] -> logits [batch, frames, vocabulary]."""

    outputs = ("logits",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor) -> Tensor:
        logits: Tensor = self.model(input_values=input_values).logits
        return logits


class Features(nn.Module):
    """The convolutions of a Wav2Vec2ForCTC and the projection behind them: input_values -> [batch, frames, width]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.convolutions = model.wav2vec2.feature_extractor
        self.projection = model.wav2vec2.feature_projection

    def forward(self, input_values: Tensor) -> Tensor:
        features: Tensor = self.projection(self.convolutions(input_values).transpose(1, 2))[0]
        return features


def student() -> FactoryModel:
    """Two narrow layers, as of a distilled model: built in seconds."""
    return speech(STUDENT)


def base() -> FactoryModel:
    """The size of facebook/wav2vec2-base-960h: 12 layers, 94 million weights."""
    return speech(BASE)


def speech(config: dict[str, Any], attention: str = "eager") -> FactoryModel:
    """Wav2Vec2ForCTC of a configuration, seeded, with its example input. `attention` is "eager" or "sdpa"."""
    torch.manual_seed(0)
    kind: Any = transformers.Wav2Vec2ForCTC
    model = kind._from_config(transformers.Wav2Vec2Config(**config), attn_implementation=attention)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(0.1 * torch.randn(value.shape))
    audio = torch.randn(2, EXAMPLE)
    dims = {"input_values": ("batch", "samples")}
    return FactoryModel(Speech(model.eval()), {"input_values": audio}, dims, Speech.outputs, {"samples": (TWO_FRAMES, None)})
