"""xlmr-classifier: a distilled XLM-RoBERTa of 6 layers and width 384 that classifies texts of a hundred languages.

The shape is that of nreimers/mMiniLMv2-L6-H384-distilled-from-XLMR-Large, word table of 250,002 rows included. All weights are
random and seeded, biases too: zero biases would hide errors and kernels.
"""

from __future__ import annotations

from typing import Any

import torch

from bertc import FactoryModel
from bertc.source.heads import Logits

SHAPE: dict[str, Any] = {
    "vocab_size": 250002,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
    "num_labels": 3,
}


def make() -> FactoryModel:
    """input_ids and attention_mask, int64[batch, length] -> logits float32[batch, 3]."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    config = XLMRobertaConfig(**SHAPE)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = XLMRobertaForSequenceClassification(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape) if value.ndim == 1 else 0)
    ids = torch.arange(10, 36).reshape(2, 13)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dims = dict.fromkeys(inputs, ("batch", "length"))
    return FactoryModel(Logits(model).eval(), inputs, dims, Logits.outputs, {"length": (1, 512)})
