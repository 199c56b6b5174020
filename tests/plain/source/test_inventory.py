"""Every tensor and every file of a checkpoint is used, refused or noted; names that a wrapper gave are read through."""

from __future__ import annotations

import json
import shutil

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source.checkpoint import read_checkpoint
from bertc.source.inventory import file_notes
from bertc.source.opening import open_reference, open_source
from bertc.source.torch_export import load_module
from bertc.source.types import SourceOptions

MASK = np.ones((2, 9), np.int64)


def feeds():
    ids = np.random.default_rng(0).integers(5, 119, MASK.shape)
    return {"input_ids": ids, "attention_mask": MASK, "token_type_ids": np.zeros_like(MASK)}


def changed(path, base, change):
    """A copy of a checkpoint with the names and values of its weights changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(models.checkpoint(base), path)
    weights = {name: value.clone() for name, value in change(load_file(path / "model.safetensors")).items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def notes_of(path, task):
    return load_module(read_checkpoint(path), task)[2]


WRAPPED = {
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a model inside another": lambda name: f"model.{name}",
    "two levels": lambda name: f"net.encoder.{name}",
    "FSDP, and a compiled encoder": lambda name: (
        f"_fsdp_wrapped_module.{name.replace('bert.encoder.', 'bert.encoder._orig_mod.')}"
    ),
}


@pytest.mark.parametrize("name", list(WRAPPED))
def test_the_names_of_a_wrapper_are_read_through(name, tmp_path):
    rename = WRAPPED[name]
    path = changed(tmp_path / "m", "sequence-classification", lambda w: {rename(key): value for key, value in w.items()})
    wanted = open_reference(str(models.checkpoint("sequence-classification"))).run(feeds())["logits"]
    np.testing.assert_array_equal(open_reference(str(path)).run(feeds())["logits"], wanted)
    prefix = rename("x").removesuffix("x")
    assert any("41 weights read without" in note and prefix in note for note in notes_of(path, "sequence-classification"))


def test_a_wrapper_around_some_of_the_weights_is_named(tmp_path):
    def rename(weights):
        return {f"module.{key}": value for key, value in weights.items() if "layer.1.output.dense" not in key}

    path = changed(tmp_path / "m", "sequence-classification", rename)
    with pytest.raises(SourceError, match=r"39 of 41 are there under other names, .* as module\.bert\."):
        open_reference(str(path))


TWICE = {
    "with and without the encoder's prefix": lambda w: {n.removeprefix("bert."): v + 1 for n, v in w.items() if "layer.0." in n},
    "by the old names of a norm": lambda w: {
        n.replace("LayerNorm.weight", "LayerNorm.gamma"): v + 1
        for n, v in w.items()
        if n.endswith("layer.0.output.LayerNorm.weight")
    },
    "wrapped, beside plain": lambda w: {f"module.{n}": v + 1 for n, v in w.items() if "query" in n},
}


@pytest.mark.parametrize("kind", list(TWICE))
def test_a_weight_that_is_there_twice_is_refused_or_noted(kind, tmp_path):
    path = changed(tmp_path / "m", "sequence-classification", lambda w: {**w, **TWICE[kind](w)})
    if kind == "wrapped, beside plain":  # all plain names are there: what is in the wrapper is another model
        assert any("not used: module.bert" in note for note in notes_of(path, "sequence-classification"))
        return
    with pytest.raises(SourceError, match=r"more than once: bert\.encoder\.layer\.0\.") as error:
        open_reference(str(path))
    assert "save_pretrained into an empty folder" in str(error.value)


def test_a_weight_wrapped_and_plain_is_refused_where_wrapped_names_are_read(tmp_path):
    def change(weights):
        wrapped = {name if "layer.1." in name else f"module.{name}": value for name, value in weights.items()}
        return {**wrapped, "module.bert.encoder.layer.1.output.dense.bias": weights["bert.encoder.layer.1.output.dense.bias"] + 1}

    path = changed(tmp_path / "m", "sequence-classification", change)
    with pytest.raises(
        SourceError, match=r"1 weight of the model more than once: .*module\.bert\.encoder\.layer\.1\.output\.dense"
    ):
        open_reference(str(path))


def test_a_weight_in_two_shards_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = changed(tmp_path / "m", "sequence-classification", dict)
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    again = {"classifier.weight": weights["classifier.weight"] + 1}
    save_file(again, path / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys(weights, "model-00001-of-00002.safetensors") | {
        "classifier.weight": "model-00002-of-00002.safetensors"
    }
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(SourceError, match=r"more than once: classifier\.weight\."):
        open_reference(str(path))


def test_the_state_of_a_training_is_named_and_what_is_advised_works(tmp_path):
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "m"
    shutil.copytree(models.checkpoint("sequence-classification"), path)
    state = {f"model.{name}": value for name, value in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"'state_dict', 'epoch'.* save what it has as 'state_dict'"):
        open_reference(str(path), SourceOptions(allow_pickle=True))
    torch.save(state, path / "pytorch_model.bin")
    wanted = open_reference(str(models.checkpoint("sequence-classification"))).run(feeds())["logits"]
    np.testing.assert_array_equal(open_reference(str(path), SourceOptions(allow_pickle=True)).run(feeds())["logits"], wanted)


def relative(path):
    """BERT with relative positions, which this version of transformers has no class for."""
    import torch

    def add(weights):
        name = "encoder.layer.{}.attention.self.distance_embedding.weight"
        return weights | {name.format(layer): torch.randn(79, 16) for layer in range(2)}

    changed(path, "features", add)
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "position_embedding_type": "relative_key"}))
    return path


def test_tensors_inside_the_encoder_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"2 tensors .* BertModel.*encoder\.layer\.0\.attention\.self\.distance_embedding"):
        open_reference(str(relative(tmp_path / "m")))


def test_the_advice_to_remove_tensors_works(tmp_path):
    from safetensors.torch import load_file, save_file

    path = relative(tmp_path / "m")
    weights = {key: value.clone() for key, value in load_file(path / "model.safetensors").items() if "distance" not in key}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    wanted = open_reference(str(models.checkpoint("features"))).run(feeds())["last_hidden_state"]
    np.testing.assert_array_equal(open_reference(str(path)).run(feeds())["last_hidden_state"], wanted)


def grown(weights, **more):
    import torch

    return weights | {name.replace("__", "."): torch.randn(32, 32) for name in more}


@pytest.mark.parametrize(
    ("base", "tensor"),
    [
        ("sequence-classification", "bert.encoder.layer.2.output.dense.weight"),  # a layer more than the config has
        ("sequence-classification", "bert.projection.weight"),
        ("sequence-classification", "classifier.hidden.weight"),
        ("features", "embeddings.extra.weight"),
        ("audio-features", "encoder.layers.0.adapter_layer.norm.weight"),
    ],
)
def test_a_tensor_of_a_part_that_is_computed_with_is_refused(base, tensor, tmp_path):
    path = changed(tmp_path / "m", base, lambda weights: grown(weights, **{tensor.replace(".", "__"): 1}))
    with pytest.raises(SourceError, match=tensor.replace(".", r"\.")):
        open_reference(str(path))


HEADS = {
    "masked-lm": ("features", "not used: cls.predictions.* (5 tensors): outside task 'features'"),
    "sequence-classification": ("features", "not used: classifier.* (2 tensors): outside task 'features'"),
    "ctc": ("audio-features", "not used: lm_head.* (2 tensors): outside task 'audio-features'"),
}


@pytest.mark.parametrize("name", list(HEADS))
def test_the_head_of_another_task_is_noted(name):
    task, note = HEADS[name]
    assert note in notes_of(models.checkpoint(name), task)


def test_a_pretrained_model_says_which_of_its_heads_is_left_out(tmp_path):
    path = models.save("BertForPreTraining", "BertConfig", models.TEXT, tmp_path / "m")
    source = open_source(str(path))
    assert source.task == "features"
    assert any(note.startswith("not used: cls.* (7 tensors)") for note in source.notes)
    assert any("not used:" in note and "cls.seq_relationship.* (2 tensors)" in note for note in notes_of(path, "masked-lm"))


def test_what_the_module_computes_itself_is_noted(tmp_path):
    import torch

    path = changed(tmp_path / "m", "features", lambda w: w | {"embeddings.position_ids": torch.arange(40)[None]})
    assert "not used: embeddings.position_ids: computed again by the module" in notes_of(path, "features")


def test_the_decoder_that_the_class_leaves_out_is_noted(tmp_path):
    config = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 120}
    path = models.save("T5Model", "T5Config", config, tmp_path / "m")
    assert any("T5EncoderModel lists them as not needed" in note and "decoder." in note for note in notes_of(path, "features"))


def test_files_that_are_not_read_are_named_and_documents_counted(tmp_path):
    path = tmp_path / "m"
    shutil.copytree(models.checkpoint("features"), path)
    for name in ("README.md", "training_args.bin", ".gitattributes", "pytorch_model.bin", "sparse_linear.pt", "spare_key.json"):
        (path / name).write_bytes(b"x")
    for name in (
        "onnx/model.onnx",
        "1_Dense/model.safetensors",
        "language/adapter_config.json",
        "checkpoint-10/model.safetensors",
    ):
        (path / name).parent.mkdir()
        (path / name).write_bytes(b"x")
    (path / "2_Normalize").mkdir()
    used = {path / name for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")}
    assert file_notes(path, used) == [
        "files not read: 1_Dense/, checkpoint-10/, spare_key.json, sparse_linear.pt; nothing of them is in the graph",
        f"adapter not used: language/; --adapter {path / 'language'} merges it",
        "other forms of the weights, not read and not compared: onnx/, pytorch_model.bin",
        "3 documents and files of a training not read",
    ]
    notes = open_source(str(path), SourceOptions(task="features")).notes
    assert any("sparse_linear.pt" in note for note in notes)
    unread = [note for note in notes if "not read" in note or "not used" in note]
    assert not any("tokenizer" in note or "config.json" in note for note in unread)


def test_a_plain_checkpoint_has_nothing_to_say():
    for name in ("features", "sequence-classification", "token-classification", "audio-features"):
        assert not [note for note in models.opened(name).notes if "not used" in note or "not read" in note]
