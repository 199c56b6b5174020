"""Hub ids against a cache made by hand; no test touches a network."""

from __future__ import annotations

import shutil

import models
import pytest

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
