"""Hub ids against a cache made by hand; no test touches a network."""

from __future__ import annotations

import shutil

import fake_hub
import models
import pytest
import tiny

from bertc.core.errors import Missing, SourceError
from bertc.source import hub
from bertc.source.opening import open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--tiny--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(models.checkpoint("features"), repository / "snapshots" / COMMIT)
    return tmp_path


def test_cached_model_is_found_offline_with_its_commit(cache, capfd):
    folder, commit = hub.fetch_model("tiny/bert", None, False, False)
    assert commit == COMMIT and (folder / "config.json").is_file()
    assert hub.fetch_model("tiny/bert", COMMIT, False, False)[1] == COMMIT
    assert capfd.readouterr() == ("", "")


def test_the_commit_reaches_the_source(cache):
    source = open_source("tiny/bert")
    assert source.revision == COMMIT and source.reference == "tiny/bert"


def test_offline_and_not_cached_says_what_to_do(cache):
    with pytest.raises(Missing, match=r"'tiny/other' is not a local path.*hf download tiny/other") as caught:
        open_source("tiny/other")
    assert caught.value.exit_code == 3
    with pytest.raises(Missing, match="at revision 'v9'"):
        hub.fetch_model("tiny/bert", "v9", False, False)


def test_a_partly_cached_model_is_not_taken_for_whole(cache):
    (cache / "models--tiny--bert" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has no model\.safetensors"):
        open_source("tiny/bert")


def test_what_is_a_hub_id():
    assert hub.is_hub_id("bert-base-uncased") and hub.is_hub_id("org/name.v1")
    assert not any(map(hub.is_hub_id, ("a/b/c", "-x/y", "org/na me", "", "a--b/c", "x:y")))


def test_permissions_decide_what_is_downloaded(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k) or str(tmp_path))
    hub.fetch_model("a/b", "main", False, False)
    assert asked["revision"] == "main" and not any(p.endswith((".bin", ".py")) for p in asked["allow_patterns"])
    hub.fetch_model("a/b", None, True, True)
    assert any(p.endswith(".bin") for p in asked["allow_patterns"]) and "*.py" in asked["allow_patterns"]


# Repositories without weights for transformers, from a hub on this machine


@pytest.fixture
def repository(tmp_path):
    """`tiny/onnx`: a float32 model with external data and copies of it in smaller types, as transformers.js has them."""
    folder = tmp_path / "hub" / "tiny" / "onnx"
    (folder / "onnx").mkdir(parents=True)
    tiny.encoder(folder / "onnx" / "model.onnx", tokenizer=True, external=True)
    (folder / "onnx" / "tokenizer.json").rename(folder / "tokenizer.json")
    for name in ("model_quantized.onnx", "model_fp16.onnx"):
        (folder / "onnx" / name).write_bytes(b"not to be downloaded")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# tiny")
    return folder


def test_a_repository_of_onnx_files_is_fetched_as_onnx(repository, tmp_path, monkeypatch):
    with fake_hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch) as taken:
        source = open_source("tiny/onnx")
    assert sorted(taken) == ["config.json", "onnx/model.onnx", "onnx/w.bin", "tokenizer.json"]
    assert (source.kind, source.revision) == ("onnx", fake_hub.COMMIT)
    assert any("the source is onnx/model.onnx" in note for note in source.notes)
    assert "tokenizer.json" in {path.name for path in source.assets}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_source("tiny/onnx").sha256 == source.sha256  # from the cache


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_onnx_copies_beside_other_weights_are_not_fetched(weights, repository, tmp_path, monkeypatch):
    (repository / weights).write_bytes(b"0" * 100)
    with fake_hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch) as taken, pytest.raises(SourceError):
        open_source("tiny/onnx")
    assert not [name for name in taken if name.endswith(".onnx")]


def test_a_repository_with_several_float_models_asks_which(repository, tmp_path, monkeypatch):
    shutil.copy(repository / "onnx" / "model.onnx", repository / "onnx" / "encoder.onnx")
    (repository / "onnx" / "model.onnx").rename(repository / "onnx" / "decoder.onnx")
    with (
        fake_hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch),
        pytest.raises(SourceError, match=r"2 \.onnx files: onnx/decoder\.onnx, onnx/encoder\.onnx; give one of them") as caught,
    ):
        open_source("tiny/onnx")
    folder = str(caught.value).split(" has no weights")[0]
    assert open_source(f"{folder}/onnx/encoder.onnx").kind == "onnx"  # the advice, followed
