"""Encoders of mel frames: the graph equals PyTorch at every length, and what is not taken is refused by its name."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest

from bertc.core import SourceError
from bertc.source.mel import mel_input
from bertc.source.opening import open_reference, open_source
from bertc.source.types import SourceOptions

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {**SHAPE, "vocab_size": 20, "feature_projection_input_dim": 40, "conv_depthwise_kernel_size": 5}
SPECTRUM = {**SHAPE, "max_length": 64, "num_mel_bins": 32, "num_labels": 5}
WHISPER = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 16, "max_source_positions": 50, "vocab_size": 60},
    **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4, "num_labels": 3},
}
MODELS = {
    "Wav2Vec2BertForCTC": ("Wav2Vec2BertConfig", {**BERT, "position_embeddings_type": "rotary"}, "ctc"),
    "Wav2Vec2BertForSequenceClassification": (
        "Wav2Vec2BertConfig",
        {**BERT, "num_labels": 4, "classifier_proj_size": 16},
        "audio-classification",
    ),
    "Wav2Vec2BertModel": (
        "Wav2Vec2BertConfig",
        {**BERT, "position_embeddings_type": "relative", "max_source_positions": 90},
        "audio-features",
    ),
    "ASTForAudioClassification": ("ASTConfig", SPECTRUM, "audio-classification"),
    "WhisperForAudioClassification": ("WhisperConfig", WHISPER, "audio-classification"),
}
INPUTS = {
    "ASTForAudioClassification": ["input_values: float32[batch, 64, 32]"],
    "WhisperForAudioClassification": ["input_features: float32[batch, 16, 100]"],
}
LONGEST = {"Wav2Vec2BertModel": 90}


@pytest.mark.parametrize("name", list(MODELS))
def test_an_encoder_of_mel_frames_equals_torch(name, tmp_path):
    import torch
    import transformers

    config, settings, task = MODELS[name]
    path = models.save(name, config, settings, tmp_path / "m")
    source = open_source(str(path))
    assert source.task == task
    named = ["input_features: float32[batch, frames, 40]", "attention_mask: int64[batch, frames]"]
    assert [str(spec) for spec in source.graph.inputs] == INPUTS.get(name, named)
    if "frames" in source.dims:
        assert (source.dims["frames"].min, source.dims["frames"].max) == (1, LONGEST.get(name))
    module = getattr(transformers, name).from_pretrained(path).eval()
    rng = np.random.default_rng(0)
    for batch, frames in ((1, 1), (2, 2), (3, 13), (2, 88)):
        sizes = {"batch": batch, "frames": frames}
        shapes = {spec.name: tuple(sizes.get(dim, dim) for dim in spec.dims) for spec in source.graph.inputs}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        if "attention_mask" in feeds:
            feeds["attention_mask"] = np.ones((batch, frames), np.int64)
            feeds["attention_mask"][-1, max(1, frames // 2) :] = 0
        with torch.no_grad():
            wanted = module(**{key: torch.from_numpy(value) for key, value in feeds.items()})[0].numpy()
        assert source.run is not None
        for got in (models.run_graph(source.graph, feeds), source.run(feeds)):
            assert models.relative_error(next(iter(got.values())), wanted) < 1e-5


def test_other_encoders_of_recordings_are_named(tmp_path):
    clap = {
        **{"patch_embeds_hidden_size": 48, "hidden_size": 96, "depths": [1, 1], "num_attention_heads": [2, 2]},
        **{"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "window_size": 4},
    }
    path = models.save("ClapAudioModel", "ClapAudioConfig", clap, tmp_path / "clap")
    for task in (None, "audio-features"):
        with pytest.raises(SourceError, match=r"clap_audio_model.*wav2vec2-bert.*factory"):
            open_reference(str(path), SourceOptions(task=task))
    bert = models.checkpoint("features")
    named = {"feature_extractor_type": "OwnFeatureExtractor", "sampling_rate": 16000}
    for file in bert.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "preprocessor_config.json").write_text(json.dumps(named))
    with pytest.raises(SourceError, match="what OwnFeatureExtractor makes of recordings"):
        open_reference(str(path))


def test_of_whisper_the_encoder_of_a_classifier_is_taken_alone(tmp_path):
    path = models.save("WhisperModel", "WhisperConfig", {k: v for k, v in WHISPER.items() if k != "num_labels"}, tmp_path / "m")
    for task in (None, "audio-features"):
        with pytest.raises(SourceError, match="encoder-decoder"):
            open_reference(str(path), SourceOptions(task=task))


@pytest.mark.parametrize("size", ["wide", 0, None, [1]])
def test_a_size_that_is_none_is_named(size):
    with pytest.raises(SourceError, match=r"feature_projection_input_dim is .*, wants a whole number"):
        mel_input({"model_type": "wav2vec2-bert", "feature_projection_input_dim": size}, "Wav2Vec2BertModel")
