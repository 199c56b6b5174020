"""A checkpoint of somebody else: its config runs no code, and no file or link in it reaches a file of this machine."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import models
import pytest

from bertc.core.errors import SourceError
from bertc.source import torch_export
from bertc.source.assets import collect_assets
from bertc.source.checkpoint import read_checkpoint
from bertc.source.opening import open_source
from bertc.source.types import SourceOptions

KERNEL = "evil/kernel"
OWN = "from pathlib import Path\nPath({!r}).write_text('ran')\n"


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(models.checkpoint("features"), tmp_path / "model")


def edit(path, **changes):
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(settings | changes))


def refused(path, *words):
    with pytest.raises(SourceError) as caught:
        open_source(str(path))
    assert caught.value.exit_code == 2
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_implementation": KERNEL}, ("attn_implementation", KERNEL)),
        ({"_attn_implementation": f"{KERNEL}@main:forward"}, ("_attn_implementation", KERNEL)),
        ({"_attn_implementation_internal": "eager", "attn_implementation": {"text_config": KERNEL}}, (KERNEL,)),
        ({"text_config": {"_experts_implementation": KERNEL}}, ("_experts_implementation", KERNEL)),
        ({"parts": [{"attn_implementation": f"paged|{KERNEL}"}]}, (KERNEL,)),
        ({"configuration_files": ["config.4.0.0.json"]}, ("configuration_files", "config.4.0.0.json")),
        ({"transformers_weights": "adapter_model.bin"}, ("transformers_weights", "adapter_model.bin")),
        ({"auto_map": ["own.Model"]}, ("own.Model", "--trust-remote-code")),
        ({"auto_map": "own.Model"}, ("own.Model", "--trust-remote-code")),
    ],
)
def test_a_config_that_names_code_or_other_files_is_refused(directory, changes, words):
    edit(directory / "config.json", **changes)
    refused(directory, "config.json" if "auto_map" not in changes else directory, *words)


def test_flash_attention_in_a_config_is_no_code(directory):
    edit(directory / "config.json", _attn_implementation="flash_attention_2")
    made, _, _ = torch_export.load_module(read_checkpoint(directory), "features")
    assert made.module.model.config._attn_implementation == "eager"


def test_without_eager_attention_the_config_does_not_choose(directory, monkeypatch):
    """The second try, of a model that refuses `eager`, is transformers' own choice."""
    import transformers

    edit(directory / "config.json", _attn_implementation="flash_attention_2")
    real = transformers.BertModel.get_correct_attn_implementation

    def no_eager(self, requested, *rest):
        if requested == "eager":
            raise ValueError("no eager attention")
        return real(self, requested, *rest)

    monkeypatch.setattr(transformers.BertModel, "get_correct_attn_implementation", no_eager)
    made, _, notes = torch_export.load_module(read_checkpoint(directory), "features")
    assert made.module.model.config._attn_implementation == "sdpa"
    assert any("no eager attention" in note for note in notes)


def test_code_of_a_slow_tokenizer_is_not_run_and_not_asked_for(tmp_path, monkeypatch):
    """transformers asks on the terminal unless it is told; whoever pipes "y" into bertc says nothing of code."""
    (tmp_path / "own.py").write_text(OWN.format(str(tmp_path / "ran")) + "class Own: ...\n")
    (tmp_path / "vocab.txt").write_text("\n".join(models.WORDS))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    edit(tmp_path / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    collect_assets(tmp_path, tmp_path)
    assert not (tmp_path / "ran").exists() and sys.stdin.read() == "y\n" * 9


def test_a_slow_tokenizer_names_no_file_of_this_machine(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nhunter2\n")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(models.WORDS))
    edit(folder / "config.json", model_type="bert")
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", vocab_file=str(secret), tokenizer_file=str(secret))
    files, notes = collect_assets(folder, folder)
    made = {file.name: file.read_text() for file in files}
    assert '"cat"' in made["tokenizer.json"] and "hunter2" not in made["tokenizer.json"]
    assert "vocab_file" in notes[-1]


# Links


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "vocab.txt"])
def test_a_link_out_of_a_checkpoint_is_refused(directory, tmp_path, name):
    outside = tmp_path / "outside"
    (directory / name).rename(outside) if (directory / name).exists() else outside.write_text("{}")
    (directory / name).symlink_to(outside)
    refused(directory, directory / name, outside)
    (directory / name).unlink()
    (directory / "kept").mkdir()
    outside.rename(directory / "kept" / "blob")
    (directory / name).symlink_to("kept/blob")
    assert read_checkpoint(directory).architecture == "BertModel"


def test_a_module_folder_that_leads_out_is_refused(tmp_path):
    directory = models.sentence_transformer(tmp_path / "model", {"pooling_mode": "mean"}, ["Dense"])
    (directory / "2_Dense").rename(tmp_path / "elsewhere")
    (directory / "2_Dense").symlink_to(tmp_path / "elsewhere")
    refused(directory, directory / "2_Dense", tmp_path / "elsewhere")
    (directory / "2_Dense").unlink()
    shutil.copytree(tmp_path / "elsewhere", directory / "2_Dense")
    weights = directory / "2_Dense" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere" / "model.safetensors")
    refused(directory, weights, tmp_path / "elsewhere")


def snapshot(source, cache, blobs="blobs"):
    """A folder as the cache of the hub holds it: links into blobs/."""
    made = cache / "models--org--name" / "snapshots" / "0123abc"
    made.mkdir(parents=True)
    (made.parents[1] / blobs).mkdir(exist_ok=True)
    for at, file in enumerate(sorted(file for file in source.rglob("*") if file.is_file())):
        place = made / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = made.parents[1] / blobs / f"blob{at}"
        shutil.copyfile(file, blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return made


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    source = models.sentence_transformer(tmp_path / "model", {"pooling_mode": "mean"}, ["Dense"])
    directory = snapshot(source, tmp_path / "cache")
    assert read_checkpoint(directory).sha256() == read_checkpoint(source).sha256()
    files, _ = collect_assets(directory, directory)
    assert "tokenizer.json" in {file.name for file in files}


def test_only_the_blobs_of_the_same_model_are_followed(tmp_path):
    source = models.checkpoint("features")
    refused(snapshot(source, tmp_path / "one", blobs="other"), "is a link to", "other")
    neighbour, directory = snapshot(source, tmp_path / "two"), tmp_path / "two" / "models--org--second" / "snapshots" / "1"
    directory.mkdir(parents=True)
    for file in neighbour.iterdir():
        (directory / file.name).symlink_to(file.resolve())
    refused(directory, "is a link to", "models--org--name")
    (tmp_path / "two" / "models--org--second" / "blobs").symlink_to(neighbour.parents[1] / "blobs")
    for file in list(directory.iterdir()):
        target = tmp_path / "two" / "models--org--second" / "blobs" / file.resolve().name
        file.unlink()
        file.symlink_to(target)
    refused(directory, "is a link to", "models--org--name")


def test_a_linked_folder_that_the_user_names_is_fine(directory, tmp_path):
    (tmp_path / "named").symlink_to(directory)
    assert read_checkpoint(tmp_path / "named").sha256() == read_checkpoint(directory).sha256()


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model", "preprocessor_config.json"])
def test_assets_are_no_links_to_files_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=name):
        collect_assets(folder, folder)


def test_json_that_is_too_deep_is_refused(directory):
    (directory / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused(directory, "config.json", "nested too deeply")


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("place", [".", "2_Dense"])
def test_allow_pickle_reads_tensors_and_still_runs_nothing(tmp_path, place):
    import torch

    directory = models.sentence_transformer(tmp_path / "model", {"pooling_mode": "mean"}, ["Dense"])
    (directory / place / "model.safetensors").unlink()
    pickled = directory / place / "pytorch_model.bin"
    torch.save({"linear.weight": Payload(tmp_path / "ran")}, pickled)
    with pytest.raises(SourceError, match="pickle"):
        open_source(str(directory))
    with pytest.raises(SourceError, match=r"Weights only|weights_only"):
        open_source(str(directory), SourceOptions(allow_pickle=True))
    assert not (tmp_path / "ran").exists()
    torch.load(pickled, weights_only=False)  # the payload is a real one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "torch.nn.functional.relu", "os.system", "torch.nn.modules.os.system", "torch.nn."]
)
def test_an_activation_that_is_no_activation_is_refused(tmp_path, name):
    directory = models.sentence_transformer(tmp_path / "model", {"pooling_mode": "mean"}, ["Dense"])
    edit(directory / "2_Dense" / "config.json", activation_function=name)
    refused(directory, "activation_function", name)
