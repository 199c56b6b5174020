"""Tiny seeded checkpoints with real architectures, made once per test session, and a runner without optimisations."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 120,
    "max_position_embeddings": 40,
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 120, "max_position_embeddings": 40}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 20,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
# name: (class, config class, config)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "features": ("BertModel", "BertConfig", TEXT),
    "roberta": ("RobertaModel", "RobertaConfig", {**TEXT, "type_vocab_size": 1}),
    "sequence-classification": ("BertForSequenceClassification", "BertConfig", {**TEXT, "num_labels": 3}),
    "token-classification": ("DistilBertForTokenClassification", "DistilBertConfig", {**DISTIL, "num_labels": 5}),
    "question-answering": ("BertForQuestionAnswering", "BertConfig", TEXT),
    "masked-lm": ("BertForMaskedLM", "BertConfig", TEXT),
    "audio-features": ("HubertModel", "HubertConfig", AUDIO),
    "ctc": ("Wav2Vec2ForCTC", "Wav2Vec2Config", {**AUDIO, **LAYER}),
}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on a mat dog ran far away is big".split()
TANH = "torch.nn.modules.activation.Tanh"


@functools.cache
def folder() -> Path:
    """One temporary folder per session."""
    path = Path(tempfile.mkdtemp(prefix="bertc-test-models-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def checkpoint(name: str) -> Path:
    """The directory of one of MODELS, weights drawn with seed 0 and scaled up so that every layer matters."""
    class_name, config_name, config = MODELS[name]
    return save(class_name, config_name, config, folder() / name)


@functools.cache
def one_layer(name: str) -> Path:
    """The same of one layer: an export takes half as long, where what is asked does not depend on how many there are."""
    class_name, config_name, config = MODELS[name]
    return save(class_name, config_name, {**config, "num_hidden_layers": 1}, folder() / f"{name}-one-layer")


def save(class_name: str, config_name: str, config: Mapping[str, Any], path: Path) -> Path:
    """Save a seeded random model and a small tokenizer (text) to a directory."""
    import torch
    import transformers

    from bertc.source.torch_export import quiet

    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, config_name)(**config)).eval()
    with quiet(), torch.no_grad():
        for value in model.parameters():
            value.mul_(2.0) if value.ndim > 1 else value.add_(0.05 * torch.randn(value.shape))
        model.save_pretrained(path)
    if "conv_kernel" not in config:
        tokenizer(path)
    return path


def tokenizer(path: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a whitespace tokenizer over WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(path / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40, "model_input_names": names, **special}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def sentence_transformer(path: Path, pooling: Mapping[str, Any], after: Sequence[str] = (), base: Path | None = None) -> Path:
    """A sentence-transformers directory around `base`, the `features` model of one layer; `after` lists Dense, Normalize ..."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(base or one_layer("features"), path)
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    modes = pooling.get("pooling_mode", [key for key, on in pooling.items() if on])
    width = 32 * (1 if isinstance(modes, str) else len(modes))
    torch.manual_seed(1)
    for index, kind in enumerate(after, start=2):
        place = path / f"{index}_{kind}"
        place.mkdir()
        if kind == "Dense":
            config = {"in_features": width, "out_features": 24, "bias": True, "activation_function": TANH}
            weights = {"linear.weight": torch.randn(24, width) / 4, "linear.bias": torch.randn(24)}
            width = 24
        elif kind == "LayerNorm":
            config, weights = {"dimension": width}, {"norm.weight": torch.rand(width) + 0.5, "norm.bias": torch.randn(width)}
        else:
            config, weights = {}, {}
        if weights:
            (place / "config.json").write_text(json.dumps(config))
            save_file(weights, place / "model.safetensors")
        modules.append({"idx": index, "name": str(index), "path": place.name, "type": f"sentence_transformers.models.{kind}"})
    (path / "modules.json").write_text(json.dumps(modules))
    return path


@functools.cache
def opened(name: str):
    """The Source of one of MODELS."""
    from bertc.source.opening import open_source

    return open_source(str(checkpoint(name)))


@functools.cache
def session(graph):
    """An ONNX Runtime CPU session of a Graph with all optimisations off."""
    import onnx_ir as ir
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(graph.model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_graph(graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a Graph by name."""
    names = [spec.name for spec in graph.outputs]
    return dict(zip(names, session(graph).run(names, dict(feeds)), strict=True))


def text_feeds(specs, mask: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids and types under a mask [batch, length]; padding gets id 0, or 1 as in RoBERTa, which is all the same here."""
    rng = np.random.default_rng(seed)
    made = {
        "input_ids": np.where(mask > 0, rng.integers(5, 119, mask.shape), 1),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {spec.name: made[spec.name].astype(spec.dtype) for spec in specs}


def masks(batch: int, length: int) -> dict[str, np.ndarray]:
    """int64 masks of every shape: full, padded right, left, with holes."""
    full = np.ones((batch, length), np.int64)
    right, left, holes = full.copy(), full.copy(), full.copy()
    for row in range(batch):
        cut = max(1, length - row - 1)
        right[row, cut:] = 0
        left[row, : length - cut] = 0
    holes[:, 1::3] = 0
    return {"full": full, "right": right, "left": left, "holes": holes}


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """max|got - wanted| / max|wanted|."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
