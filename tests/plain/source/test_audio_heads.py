"""Audio classifiers, of a recording and of its frames: the exported graph equals PyTorch, padded rows included."""

from __future__ import annotations

import models
import numpy as np
import pytest

from bertc.source.opening import open_source
from bertc.source.types import SourceOptions

HEAD = {**models.AUDIO, "num_labels": 4, "classifier_proj_size": 16}
MODELS = {
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", {**HEAD, **models.LAYER}, "audio-classification"),
    "HubertForSequenceClassification": ("HubertConfig", HEAD, "audio-classification"),
    "WavLMForAudioFrameClassification": ("WavLMConfig", {**models.AUDIO, "num_labels": 4}, "audio-frame-classification"),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_classifier_equals_torch(name, tmp_path):
    import torch
    import transformers

    config, settings, task = MODELS[name]
    path = models.save(name, config, settings, tmp_path / "m")
    source = open_source(str(path))
    assert source.task == task
    module = getattr(transformers, name).from_pretrained(path).eval()
    rng = np.random.default_rng(0)
    for batch, samples in ((1, 30), (3, 331), (2, 1600)):
        feeds = {"input_values": rng.standard_normal((batch, samples)).astype(np.float32)}
        if len(source.graph.inputs) > 1:
            feeds["attention_mask"] = np.ones((batch, samples), np.int64)
            feeds["attention_mask"][-1, max(30, samples // 2) :] = 0
        with torch.no_grad():
            wanted = module(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
        assert models.relative_error(models.run_graph(source.graph, feeds)["logits"], wanted) < 1e-5


def test_features_of_a_classifier_say_that_its_head_is_left_out(tmp_path):
    config, settings, _ = MODELS["HubertForSequenceClassification"]
    path = models.save("HubertForSequenceClassification", config, settings, tmp_path / "m")
    source = open_source(str(path), SourceOptions(task="audio-features"))
    assert any(
        "classifier.* (2 tensors), projector.* (2 tensors): outside task 'audio-features'" in note for note in source.notes
    )
