"""Recordings as mel frames: what the feature extractor of the model's own files makes of them, cut to what the model takes."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from bertc.core import ArtifactError, DataError, Dim, Missing, TensorSpec
from bertc.data import mel, preprocess
from bertc.data.files import samples_from_file

soundfile = pytest.importorskip("soundfile")
transformers = pytest.importorskip("transformers")

INPUTS = (
    TensorSpec("input_features", "float32", ("batch", "frames", 160)),
    TensorSpec("attention_mask", "int64", ("batch", "frames")),
)
FIXED = (TensorSpec("input_features", "float32", ("batch", 80, 3000)),)
SIZES = (4001, 9000)


@pytest.fixture
def waves(tmp_path):
    folder = tmp_path / "wavs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at, size in enumerate(SIZES):
        soundfile.write(str(folder / f"{at}.wav"), (0.1 * rng.standard_normal(size)).astype(np.float32), 16000, subtype="FLOAT")
    return folder


def read(folder, extractor, tmp_path, inputs=INPUTS, **limits):
    extractor.save_pretrained(tmp_path / "model")
    assets = sorted((tmp_path / "model").iterdir())
    dims = {name: Dim(name, 1, limits.get(name)) for name in ("batch", "frames")}
    dims, _, audio = preprocess.preprocessors(inputs, dims, assets)
    return samples_from_file(folder, inputs=inputs, dims=dims, audio=audio)


def test_frames_are_those_of_transformers(waves, tmp_path):
    extractor = transformers.SeamlessM4TFeatureExtractor()
    found = read(waves, extractor, tmp_path)
    read_back = [soundfile.read(str(file), dtype="float32")[0] for file in sorted(waves.iterdir())]
    wanted = extractor(read_back, sampling_rate=16000, return_tensors="np")
    (sample,) = found.samples
    assert {spec.name for spec in INPUTS} == set(sample.feeds)
    for name, array in sample.feeds.items():
        assert np.array_equal(array, wanted[name]) and array.shape[:2] == (2, 27)
    # 23 and 54 frames of 10 ms, two of them side by side.
    assert sample.feeds["attention_mask"].sum(1).tolist() == [11, 27] and found.notes == ()


def test_frames_that_the_model_does_not_take_are_cut_and_told(waves, tmp_path):
    found = read(waves, transformers.SeamlessM4TFeatureExtractor(), tmp_path, frames=20)
    assert found.samples[0].feeds["input_features"].shape == (2, 20, 160)
    assert "1 of 2 files made more frames" in found.notes[0]


def test_an_extractor_of_one_length_says_so(waves, tmp_path):
    found = read(waves, transformers.WhisperFeatureExtractor(), tmp_path, FIXED)
    assert found.samples[0].feeds["input_features"].shape == (2, 80, 3000)
    assert "WhisperFeatureExtractor makes [80, 3000] of every recording" in found.notes[0]


def test_other_inputs_and_a_recording_that_is_too_short_are_named(waves, tmp_path):
    with pytest.raises(DataError, match=r"WhisperFeatureExtractor makes input_features.*attention_mask"):
        read(waves, transformers.WhisperFeatureExtractor(), tmp_path)
    soundfile.write(str(waves / "2.wav"), np.zeros(100, np.float32), 16000)
    with pytest.raises(DataError, match="SeamlessM4TFeatureExtractor"):
        read(waves, transformers.SeamlessM4TFeatureExtractor(), tmp_path)


def test_what_is_missing_is_named(waves, tmp_path, monkeypatch):
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"feature_extractor_type": "NoSuchFeatureExtractor", "sampling_rate": 16000}')
    with pytest.raises(ArtifactError, match="cannot load the NoSuchFeatureExtractor"):
        mel.mel_feeds([np.zeros(4000, np.float32)], "NoSuchFeatureExtractor", {file.name: file}, 16000, INPUTS)
    real = builtins.__import__

    def absent(name, *rest):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *rest)

    mel._extractor.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(Missing, match=r"pip install 'bertc\[export\]'.*npz"):
        mel.mel_feeds([np.zeros(4000, np.float32)], "SeamlessM4TFeatureExtractor", {file.name: file}, 16000, INPUTS)
