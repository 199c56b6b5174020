"""One small classifier of transformers, and the file that torch's TorchScript exporter makes of it, which others convert."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brought
import numpy as np
import pytest
import torch
import transformers

LAYERS, WORDS = 2, 300
BL = {0: "batch", 1: "length"}


class Logits(torch.nn.Module):
    """What people write around a model of transformers to export it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@pytest.fixture(scope="session")
def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def trace() -> Callable[[Any, Path], Path]:
    """torch.onnx.export(dynamo=False) of a model with logits, to a path."""

    def to(model: Any, path: Path) -> Path:
        ids = torch.ones(2, 9, dtype=torch.int64)
        names = ["input_ids", "attention_mask"]
        axes = {"input_ids": BL, "attention_mask": BL, "logits": {0: "batch"}}
        torch.onnx.export(
            Logits(model).eval(), (ids, ids), str(path), dynamo=False, opset_version=17, input_names=names,
            output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
        return path

    return to


@pytest.fixture(scope="session")
def traced(classifier: Any, trace: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace(copy.deepcopy(classifier), tmp_path_factory.mktemp("traced") / "m.onnx")


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray]:
    return brought.text_feeds(words=WORDS)


@pytest.fixture(scope="session")
def truth(classifier: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """PyTorch's logits in float32."""
    with torch.no_grad():
        return classifier(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits.numpy()
