"""A Hugging Face directory that cannot be used: found before torch is imported where possible, and said in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import models
import pytest

from bertc.core.errors import SourceError
from bertc.source.checkpoint import read_checkpoint
from bertc.source.opening import open_source
from bertc.source.types import SourceOptions
from bertc.source.weight_files import safetensors_header


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(models.checkpoint("features"), tmp_path / "model")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def refused(path, *words, **options):
    with pytest.raises(SourceError) as caught:
        open_source(str(path), SourceOptions(**options))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_config_missing_or_truncated(directory):
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text[: len(text) // 2])
    refused(directory, "config.json", "no JSON", "download complete")
    (directory / "config.json").write_text("[]")
    refused(directory, "$ is a list", "wants an object")
    (directory / "config.json").unlink()
    refused(directory, "is not a source", "model.safetensors")


def test_config_without_architectures(directory):
    edit_config(directory, architectures=None)
    refused(directory, "architectures", "save_pretrained")


def test_weights_missing_or_truncated(directory):
    weights = directory / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    refused(directory, "should have", str(len(data)))
    weights.write_bytes(data[:40])
    refused(directory, "truncated")
    weights.write_bytes(b"")
    refused(directory, "truncated")
    weights.write_bytes((8).to_bytes(8, "little") + b"not json")
    refused(directory, "safetensors header", "cannot be read")
    weights.unlink()
    refused(directory, "has no model.safetensors", "tokenizer.json")


def test_shards(directory):
    names = list(safetensors_header(directory / "model.safetensors"))
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    refused(directory, "2 shards", "model-00002-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    refused(directory, "outside its own folder")


def test_pickle_needs_permission(directory):
    import torch
    from safetensors.torch import load_file

    from bertc.source.weight_files import find_weights

    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    refused(directory, "pickle", "--allow-pickle", "safetensors")
    assert [f.name for f in find_weights(directory, allow_pickle=True)] == ["pytorch_model.bin"]
    from bertc.source.torch_export import load_module

    made, _, _ = load_module(read_checkpoint(directory, allow_pickle=True), "features")
    assert torch.equal(made.module.model.embeddings.LayerNorm.weight, open_torch_weight())


def open_torch_weight():
    from safetensors.torch import load_file

    return load_file(models.checkpoint("features") / "model.safetensors")["embeddings.LayerNorm.weight"]


def test_remote_code_needs_permission(directory):
    edit_config(directory, auto_map={"AutoModel": "modeling_own.OwnModel"})
    refused(directory, "--trust-remote-code", "modeling_own.OwnModel")


def test_nan_weights_are_named(directory):
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    weights["embeddings.LayerNorm.bias"][2] = float("inf")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    refused(directory, "NaN or infinity", "encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias")


def test_large_finite_weights_are_not_called_infinite():
    import torch

    from bertc.source.torch_export import check_finite

    module = torch.nn.Linear(4, 4)
    with torch.no_grad():
        module.weight.fill_(3e38)
    check_finite(module, "a sum of these overflows")


def test_a_head_that_is_not_in_the_checkpoint_is_refused(directory):
    refused(directory, "lacks", "classifier.weight", "random", task="sequence-classification")


@pytest.mark.parametrize("more", [1, 10])
def test_more_layers_in_config_json_than_in_the_weights_are_told_as_such(directory, more):
    """Choosing another task would not help."""
    there = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
    edit_config(directory, num_hidden_layers=there + more)
    said = refused(directory, "lacks", "config.json", f"{there} of {there + more} layers")
    assert "--task" not in said


def test_a_missing_pooler_is_dropped_and_said(directory):
    from safetensors.torch import load_file, save_file

    from bertc.source.torch_export import load_module

    weights = load_file(directory / "model.safetensors")
    kept = {name: value.half() for name, value in weights.items() if "pooler" not in name}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    found = read_checkpoint(directory)
    assert "F16" in found.notes[0]
    made, _, notes = load_module(found, "features")
    assert made.outputs == ("last_hidden_state",) and "pooler" in notes[0]
    assert {str(p.dtype) for p in made.module.parameters()} == {"torch.float32"}


def test_weights_that_do_not_fit_the_config(directory):
    edit_config(directory, intermediate_size=48)
    refused(directory, "intermediate.dense")


def test_unknown_architecture_and_model_type(directory):
    edit_config(directory, architectures=["BertForNextSentencePrediction"])
    refused(directory, "BertForNextSentencePrediction", "masked-lm", "factory")
    edit_config(directory, architectures=["NovelModel"], model_type="novel")
    refused(directory, "novel")


def test_what_is_no_text_encoder(directory):
    refused(directory, "takes token ids", task="ctc")
    edit_config(directory, is_encoder_decoder=True)
    refused(directory, "encoder-decoder", "factory")


def test_a_path_with_a_typo_names_its_neighbour(directory):
    refused(directory.parent / "modle", "did you mean 'model'")
    refused("./nosuch/place", "there is no folder")
    refused("what is this?", "a source is")


def test_bad_directories_cost_no_torch(directory):
    (directory / "model.safetensors").write_bytes(b"")
    code = "import sys\nfrom bertc.core.errors import SourceError\nfrom bertc.source import open_source\n"
    code += "try: open_source(sys.argv[1])\nexcept SourceError: print('torch' in sys.modules or 'transformers' in sys.modules)\n"
    paths = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, env=paths, check=True)
    assert done.stdout.strip() == "False", done.stderr


def test_sha256_follows_what_the_model_computes(directory):
    first = read_checkpoint(directory).sha256()
    (directory / "README.md").write_text("words")
    assert read_checkpoint(directory).sha256() == first
    edit_config(directory, layer_norm_eps=1e-5)
    assert read_checkpoint(directory).sha256() != first


def test_a_slow_tokenizer_is_converted(directory):
    from bertc.source import assets

    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (directory / "vocab.txt").write_text("\n".join(models.WORDS))
    files, notes = assets.collect_assets(directory, directory)
    assert "tokenizer.json" in [file.name for file in files] and "converted" in notes[0]
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(next(file for file in files if file.name == "tokenizer.json")))
    assert made.encode("the cat").ids == [2, 5, 6, 3]
