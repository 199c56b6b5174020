"""Stacks of convolutions of their own strides, with frames squeezed or not: right at every length, whatever torch can prove."""

from __future__ import annotations

import models
import numpy as np
import pytest

from bertc.source.opening import open_source

DEBERTA = {"max_position_embeddings": 64, "position_buckets": 16, "norm_rel_ebd": "layer_norm"}
LAYER = {"feat_extract_norm": "layer"}  # and with it a mask


def stack(kernel, stride, **more):
    return {**models.AUDIO, "conv_dim": (16,) * len(kernel), "conv_kernel": kernel, "conv_stride": stride, **more}


# (class, config class, config, samples of the shortest recording).
MODELS = {
    "SEW": ("SEWForCTC", "SEWConfig", stack((10, 3), (5, 2), squeeze_factor=2, **LAYER), 30),
    "SEW-D": ("SEWDForCTC", "SEWDConfig", stack((10, 3), (5, 2), squeeze_factor=2, **LAYER, **DEBERTA), 30),
    "one convolution": ("Wav2Vec2ForCTC", "Wav2Vec2Config", stack((40,), (32,)), 72),
    "two, bias": ("HubertForCTC", "HubertConfig", stack((10, 5), (7, 4), conv_bias=True, **LAYER), 38),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_length_equals_torch(name, tmp_path):
    import torch
    import transformers

    kind, config, settings, least = MODELS[name]
    path = models.save(kind, config, {**settings, "num_hidden_layers": 1}, tmp_path / "m")
    source = open_source(str(path))
    assert source.dims["samples"].min == least and source.dims["samples"].max is None
    module = getattr(transformers, kind).from_pretrained(path, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    for samples in (*range(least, least + 100, 19), 2000, 2013, 2022):
        feeds = {"input_values": rng.standard_normal((2, samples)).astype(np.float32)}
        if len(source.graph.inputs) > 1:
            feeds["attention_mask"] = np.ones((2, samples), np.int64)
            feeds["attention_mask"][-1, max(least, samples // 2) :] = 0
        with torch.no_grad():
            wanted = module(**{key: torch.from_numpy(value) for key, value in feeds.items()})[0].numpy()
        got = next(iter(models.run_graph(source.graph, feeds).values()))
        assert models.relative_error(got, wanted) < 2e-5, samples
