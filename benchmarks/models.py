"""Encoders at their real size, with seeded random weights: biases too, for zero ones would hide kernels and errors.

python -m benchmarks.models BERT-large out/graph.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertc.core.profiles import Dim
from bertc.graph.model import Graph, save_graph

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
XLMR = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
WIDE = {"vocab_size": 250002, "hidden_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 24, "intermediate_size": 6144}
# name: (family of transformers, its config); "3 GB" has no name of its own, 0.8 billion weights and a large vocabulary.
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "BERT-base": ("Bert", {}),
    "BERT-large": ("Bert", LARGE),
    "XLM-R-base": ("XLMRoberta", XLMR),
    "3 GB": ("Bert", WIDE),
}


def exported(name: str, *, query_bias: bool = True) -> tuple[Graph, dict[str, Dim]]:
    """The graph of one of MODELS, token ids to last_hidden_state, and its dimensions; `query_bias` False makes those zero."""
    import torch
    import transformers

    from bertc import FactoryModel
    from bertc.source import torch_export
    from bertc.source.factory import dims_of
    from bertc.source.heads import Features, text_inputs

    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config, add_pooling_layer=False)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.add_(0.1 * torch.randn(value.shape) if value.ndim == 1 else 0)
            value.mul_(0 if key.endswith("query.bias") and not query_bias else 1)
    names = text_inputs(model)
    example = dict.fromkeys(names, torch.arange(10, 36).reshape(2, 13) % 2)
    dims = dict.fromkeys(names, ("batch", "length"))
    made = FactoryModel(Features(model, False).eval(), example, dims, ("last_hidden_state",), {"length": (1, 512)})
    return torch_export.export_module(made, 20)[0], dims_of(made)


if __name__ == "__main__":
    save_graph(exported(sys.argv[1])[0], Path(sys.argv[2]))
