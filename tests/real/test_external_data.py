"""Weights beside the .onnx file, however a tool laid them there: read, or the file that is missing is named."""

from __future__ import annotations

import shutil

import brought
import onnx
import pytest


def saved(traced, folder, **how):
    folder.mkdir(parents=True)
    kind = {"save_as_external_data": True, "size_threshold": 0, "all_tensors_to_one_file": True, **how}
    onnx.save_model(onnx.load(traced), str(folder / "model.onnx"), **kind)
    return folder / "model.onnx"


TAKEN = {
    "one file": lambda traced, at: saved(traced, at / "m", location="model.onnx_data"),
    "many files": lambda traced, at: saved(traced, at / "m", all_tensors_to_one_file=False),
    "a name with spaces": lambda traced, at: saved(traced, at / "with space", location="my weights.bin"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_read(name, traced, feeds, truth, tmp_path):
    built = brought.build(TAKEN[name](traced, tmp_path), tmp_path / "out", targets=["onnxruntime=fp32"])
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], truth) < 1e-5
    assert brought.off(brought.answers(built.graph(), feeds, optimised=False)["logits"], truth) < 1e-5


def missing(traced, at):
    path = saved(traced, at / "m", location="weights.bin")
    (at / "m" / "weights.bin").unlink()
    return path


def cut_short(traced, at):
    path = saved(traced, at / "m", location="weights.bin")
    data = at / "m" / "weights.bin"
    data.write_bytes(data.read_bytes()[:1000])
    return path


def above(traced, at):
    """A path that leaves the model's folder may name any file of the machine."""
    path = saved(traced, at / "m", location="weights.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in (e for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"):
        entry.value = "../weights.bin"
    onnx.save(model, path)
    shutil.move(at / "m" / "weights.bin", at / "weights.bin")
    return path


@pytest.mark.parametrize("make", [missing, cut_short, above])
def test_it_is_refused_by_its_name(make, traced, tmp_path):
    built = brought.build(make(traced, tmp_path), tmp_path / "out")
    assert built.code == 2, built.said
    assert "weights.bin" in built.said
    assert not built.folder.exists()


@pytest.mark.parametrize("target", ["onnxruntime=fp32", "null=fp16"])
def test_weights_in_the_cache_of_the_hub(target, traced, feeds, truth, tmp_path):
    """The names are links to the blobs of the same model."""
    saved(traced, tmp_path / "models--a--b" / "blobs", location="model.onnx_data")
    link = tmp_path / "models--a--b" / "snapshots" / "1a2b"
    link.mkdir(parents=True)
    for name in ("model.onnx", "model.onnx_data"):
        (link / name).symlink_to(f"../../blobs/{name}")
    built = brought.build(link / "model.onnx", tmp_path / "out", targets=[target])
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], truth) < (1e-5 if "fp32" in target else 2e-2)


def test_what_is_advised_for_links_works(traced, feeds, truth, tmp_path):
    """Links that lead anywhere else are refused: what they point to would travel with the artifact."""
    saved(traced, tmp_path / "elsewhere", location="model.onnx_data")
    link = tmp_path / "mine"
    link.mkdir(parents=True)
    for name in ("model.onnx", "model.onnx_data"):
        (link / name).symlink_to(f"../elsewhere/{name}")
    refused = brought.build(link / "model.onnx", tmp_path / "out")
    assert refused.code == 2 and "model.onnx_data" in refused.said
    assert f"cp -rL {link}" in " ".join(refused.said.split())
    shutil.copytree(link, tmp_path / "copy")  # cp -rL
    built = brought.build(tmp_path / "copy" / "model.onnx", tmp_path / "out", targets=["onnxruntime=fp32"])
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], truth) < 1e-5
