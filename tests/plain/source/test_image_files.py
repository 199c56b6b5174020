"""A preprocessor of images in a model's folder is no feature extractor of recordings, and is said to be left out."""

from __future__ import annotations

import json
import shutil

import models
import pytest

from bertc.core import ArtifactError, SourceError, TensorSpec
from bertc.data import Audio, audio_settings, preprocess
from bertc.source import open_source
from bertc.source.assets import collect_assets

PIXELS = {"do_resize": True, "image_mean": [0.5, 0.5, 0.5], "size": 224}
RECORDINGS = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "padding_value": 0.0}
IMAGES = {
    "CLIP, old": ("preprocessor_config.json", {**PIXELS, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}),
    "CLIP": ("preprocessor_config.json", {**PIXELS, "image_processor_type": "CLIPImageProcessor"}),
    "ViT, old": ("preprocessor_config.json", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}),
    "no class": ("preprocessor_config.json", PIXELS),
    "transformers 5": ("processor_config.json", {"image_processor": {**PIXELS, "image_processor_type": "ViTImageProcessor"}}),
    "in the place of recordings": ("processor_config.json", {"feature_extractor": PIXELS, "image_processor": PIXELS}),
    "video": ("processor_config.json", {"video_processor": {"video_processor_type": "VideoMAEVideoProcessor"}}),
}


@pytest.mark.parametrize("kind", list(IMAGES))
def test_settings_of_images_are_left_out_with_a_note(tmp_path, kind):
    name, config = IMAGES[kind]
    (tmp_path / name).write_text(json.dumps(config))
    assert audio_settings({name: tmp_path / name}) == (None, {})
    files, notes = collect_assets(tmp_path, tmp_path)
    assert files == () and len(notes) == 1 and name in notes[0] and "images" in notes[0]


@pytest.mark.parametrize("nested", [True, False])
def test_settings_of_recordings_stay_beside_those_of_images(tmp_path, nested):
    name = "processor_config.json" if nested else "preprocessor_config.json"
    both = {"feature_extractor": RECORDINGS, "image_processor": PIXELS}
    (tmp_path / name).write_text(json.dumps(both if nested else RECORDINGS))
    files, notes = collect_assets(tmp_path, tmp_path)
    assert [file.name for file in files] == [name] and not notes
    assert Audio.from_directory(tmp_path).sampling_rate == 16000


def test_settings_of_recordings_without_a_rate_stay_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 1, "padding_value": 0.0}))
    with pytest.raises(ArtifactError, match="sampling_rate"):
        Audio.from_directory(tmp_path)
    (file,), _ = collect_assets(tmp_path, tmp_path)
    ids = TensorSpec("input_ids", "int64", ("batch", "length"))
    assert preprocess.preprocessors([ids], {}, [file])[2] is None, "a model of texts has no recordings to prepare"


def test_a_text_tower_builds_without_it(tmp_path):
    shutil.copytree(models.one_layer("features"), tmp_path / "text")
    (tmp_path / "text" / "preprocessor_config.json").write_text(json.dumps(IMAGES["CLIP"][1]))
    source = open_source(str(tmp_path / "text"))
    assert "preprocessor_config.json" not in {path.name for path in source.assets}
    assert any("CLIPImageProcessor" in note for note in source.notes)


def test_a_model_of_texts_and_images_is_refused_with_the_way_to_its_text_tower(tmp_path):
    import transformers

    from bertc.source.torch_export import quiet

    text = {**models.TEXT, "num_hidden_layers": 1, "projection_dim": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "projection_dim": 16}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    with quiet():
        transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
        with pytest.raises(SourceError, match=r"pixel_values.*text_model\.save_pretrained"):
            open_source(str(tmp_path / "clip"))
        transformers.AutoModel.from_pretrained(tmp_path / "clip").text_model.save_pretrained(tmp_path / "tower")
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["architectures"] == ["CLIPTextModel"]
