"""The whole way, on an encoder that builds in a moment: build, verify, load, and the same bytes twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import bertc
from bertc import targets
from bertc.artifact import goldens
from bertc.artifact import manifest as artifact
from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError, DataError, ExportFailed
from bertc.core.profiles import Dim, parse_profile
from bertc.runtime.reference import ReferenceRunner
from bertc.source import opening as source
from bertc.source import types
from bertc.targets import Availability
from bertc.verification import export_check
from bertc.verification import verdict as verification

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("model") / "m.onnx", tokenizer=True)


@pytest.fixture(scope="module")
def built(model: Path) -> Path:
    """onnxruntime-fp32, onnxruntime-fp16 and null-bf16 in one folder."""
    out = model.parent / "built"
    run("build", model, "--fp32", "--target", "onnxruntime", "--target", "onnxruntime=fp16", "--target", "null=bf16", "-o", out)
    return out


def run(*words: object, code: int = 0) -> None:
    assert cli.run([str(word) for word in words]) == code


def said(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().err.split())


# Building


def test_several_targets_lie_side_by_side(built: Path) -> None:
    assert sorted(p.name for p in built.iterdir()) == ["null-bf16", "onnxruntime-fp16", "onnxruntime-fp32"]
    halves = [artifact.open_artifact(each).graph().initializer_bytes for each in artifact.find_artifacts(built)]
    assert halves[0] < 0.6 * halves[2]
    assert [each.precision for each in map(artifact.open_artifact, artifact.find_artifacts(built))] == ["bf16", "fp16", "fp32"]
    assert (built / "onnxruntime-fp16" / "tokenizer" / "tokenizer.json").is_file()


def test_the_typed_graphs_are_typed(built: Path) -> None:
    for name, dtype in (("null-bf16", "BFLOAT16"), ("onnxruntime-fp16", "FLOAT16"), ("onnxruntime-fp32", "FLOAT")):
        nodes = artifact.open_artifact(built / name).graph().model.graph
        products = [node.inputs[1] for node in nodes if node.op_type == "MatMul"]
        assert len(products) == 6
        assert {value.dtype.name for value in products if value and value.dtype} == {dtype}


def test_the_default_target_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setattr(targets.get(name), "available", lambda: Availability(False, False, "none here", "", "pip install it"))
    run("build", model, "-o", tmp_path / "a")
    assert "note target onnxruntime: no TensorRT here (tensorrt: none here" in said(capsys)
    assert artifact.open_artifact(tmp_path / "a").target == "onnxruntime"
    run("build", model, "--fp16", "-o", tmp_path / "b", code=3)
    assert "pip install it (builds without a GPU)" in said(capsys)
    assert not (tmp_path / "b").exists()


def test_the_same_inputs_give_the_same_bytes(model: Path, built: Path, tmp_path: Path) -> None:
    """In another process, with another order of hashes, in another folder."""
    words = ["build", str(model), "--fp32", "--target", "onnxruntime", "--target", "onnxruntime=fp16", "--target", "null=bf16"]
    command = [sys.executable, "-m", "bertc", *words, "-o", str(tmp_path / "o")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"})
    for first in artifact.find_artifacts(built):
        second = tmp_path / "o" / first.name
        for file in ("graph.onnx", "goldens.npz"):
            assert (first / file).read_bytes() == (second / file).read_bytes(), (first.name, file)
        manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, second)]
        for manifest in manifests:
            for name in ("report.json", "report.html"):  # they hold the time that each stage took
                manifest["files"].pop(name)
        assert manifests[0] == manifests[1]


def test_no_verify_is_said(model: Path, tmp_path: Path, capsys: Capture) -> None:
    run("build", model, "--fp32", "--target", "onnxruntime", "--no-verify", "-o", tmp_path / "a")
    assert "note onnxruntime-fp32: not verified (--no-verify)" in (err := said(capsys))
    assert "no (--no-verify)" in err
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert (report["verification"], "not verified (--no-verify)" in " ".join(report["notes"])) == (None, True)


# From an export

NO_TORCH = """
import sys
from bertc import cli
code = cli.run(["build", "export", "--target", "onnxruntime=fp16", "-o", "out"])
sys.exit(code or ("torch" in sys.modules or "transformers" in sys.modules))
"""


def test_an_export_is_built_without_torch(model: Path, tmp_path: Path, capsys: Capture) -> None:
    run("export", model, "-o", tmp_path / "export")
    done = subprocess.run([sys.executable, "-c", NO_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "its goldens are the reference" in " ".join(done.stderr.split())
    straight = tmp_path / "straight"
    run("build", model, "--target", "onnxruntime=fp16", "-o", straight)
    for file in ("graph.onnx", "goldens.npz"):
        assert (tmp_path / "out" / file).read_bytes() == (straight / file).read_bytes()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()
    capsys.readouterr()
    (tmp_path / "t.txt").write_text("two words\n")
    run(
        "build",
        tmp_path / "export",
        "--target",
        "null",
        "--goldens",
        "data",
        "--data",
        tmp_path / "t.txt",
        "-o",
        tmp_path / "x",
        code=2,
    )
    assert "is an artifact and cannot run the data" in said(capsys)


def test_a_typed_artifact_is_no_source(built: Path, tmp_path: Path, capsys: Capture) -> None:
    run("build", built / "onnxruntime-fp16", "--target", "null", "-o", tmp_path / "x", code=2)
    assert "is already fp16; build from its export" in said(capsys)


# Is the export the model?


def altered(model: Path, breaks: Any, kind: str = "factory") -> types.Source:
    """The encoder, with a truth that `breaks(feeds, outputs)` makes different from its graph."""
    found = source.open_source(str(model))
    assert found.run is not None
    truth = found.run
    return dataclasses.replace(found, kind=kind, run=lambda feeds: {n: breaks(feeds, a) for n, a in truth(feeds).items()})


def blamed(found: types.Source) -> str:
    with pytest.raises(ExportFailed) as caught:
        export_check.check_export(found, (), lambda *_: None)
    return str(caught.value)


@pytest.mark.parametrize(("axis", "name", "sizes"), [(1, "length", "512"), (0, "batch", "5")])
def test_a_baked_dimension_is_named(model: Path, axis: int, name: str, sizes: str) -> None:
    limit = {"length": 100, "batch": 4}[name]
    text = blamed(altered(model, lambda feeds, a: a + (feeds["input_ids"].shape[axis] > limit)))
    assert f"fails whenever axis {axis} of 'input_ids' is {sizes}, and holds at" in text
    assert "last_hidden_state: relative error" in text
    assert "Rewrite the Python" in text


@pytest.mark.parametrize("what", ["noise", "a state"])
def test_a_source_that_does_not_repeat_itself_is_blamed_and_not_the_exporter(model: Path, what: str) -> None:
    rng, calls = np.random.default_rng(0), itertools.count()

    def wavers(feeds: dict[str, np.ndarray], array: np.ndarray) -> np.ndarray:
        return array + (rng.standard_normal(array.shape) if what == "noise" else np.float32(next(calls))).astype(array.dtype)

    text = blamed(altered(model, wavers))
    assert "does not repeat output 'last_hidden_state'" in text and "exporter" not in text


def test_positions_for_one_length(tmp_path: Path, capsys: Capture) -> None:
    """Graph with an arange of 17 baked in, of a model that has none: right at length 17 and nowhere else."""
    import onnx
    import onnx.helper as oh
    from onnx import numpy_helper

    whole = source.open_source(str(tiny.encoder(tmp_path / "whole.onnx")))
    path = tmp_path / "m.onnx"
    model = onnx.load(tmp_path / "whole.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 17, tiny.WIDTH), np.float32), "positions"))
    model.graph.node[0].output[0] = "raw_x"
    model.graph.node.insert(1, oh.make_node("Add", ["raw_x", "positions"], ["x"]))
    onnx.save(model, path)
    opened = source.open_source(str(path))
    assert opened.dims["length"] == Dim("length", 17, 17), "as a source of its own it is one of a single length"
    text = blamed(dataclasses.replace(opened, kind="factory", run=whole.run, dims=whole.dims))
    assert "It fails whenever axis 1 of 'input_ids' is 1, 37, 512, and holds at 17: the exporter baked in" in text
    run("build", path, "--target", "null", "-o", tmp_path / "o")
    assert "dimension length: only 17 (Add" in said(capsys)


def test_wrong_everywhere_blames_no_dimension(model: Path) -> None:
    text = blamed(altered(model, lambda feeds, a: a + 1))
    assert "at 12 of 12 samples" in text
    assert "fails whenever" not in text


def test_nothing_is_said_of_an_exporter_that_an_onnx_file_does_not_have(model: Path) -> None:
    text = blamed(altered(model, lambda feeds, a: a + (feeds["input_ids"].shape[1] > 100), "onnx"))
    assert "last_hidden_state: relative error" in text, "the output that differs first"
    assert "axis 1 of 'input_ids' is 512" in text
    assert "export" not in text and "Python" not in text


def test_a_source_that_gives_nan(model: Path) -> None:
    assert "the source gives NaN" in blamed(altered(model, lambda feeds, a: a * np.nan))


# Verifying


def tampered(built: Path, folder: Path, target: str, changed: float) -> Path:
    """An artifact whose hashes are right, whose weights are those of another model, and whose goldens are the old ones."""
    other = tiny.encoder(folder / "other.onnx", changed=changed)
    out = folder / "tampered"
    run("build", other, "--target", target, "-o", out)
    files = {"goldens.npz": goldens.save_goldens(out / "goldens.npz", *goldens.load_goldens(built / "goldens.npz"))}
    facts = {k: v for k, v in json.loads((out / "manifest.json").read_text()).items() if k not in ("files", "format")}
    (out / "manifest.json").unlink()
    artifact.write_manifest(out, facts, files)
    return out


@pytest.mark.parametrize(
    ("target", "changed", "metric"),
    [("onnxruntime=fp32", 0.01, "relative error"), ("null=fp32", 0.01, "relative error"), ("onnxruntime=fp16", 1.0, "cosine")],
)
def test_another_model_behind_the_same_goldens(
    built: Path, tmp_path: Path, capsys: Capture, target: str, changed: float, metric: str
) -> None:
    run("verify", tampered(built / "onnxruntime-fp32", tmp_path, target, 0.0))
    (tmp_path / "x").mkdir()
    out = tampered(built / "onnxruntime-fp32", tmp_path / "x", target, changed)
    capsys.readouterr()
    run("verify", out, code=1)
    err = said(capsys)
    assert f"last_hidden_state: {metric}" in err
    assert "; worst: batch " in err
    assert "FAILED" in err
    run("verify", out, "--budget", "rel=1" if metric != "cosine" else "cosine=0.5")
    assert "FAILED" not in said(capsys)


def test_verify_with_data_and_against(model: Path, built: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "d.npz", **tiny.feeds(3, 9))
    run("verify", built / "onnxruntime-fp32", "--data", tmp_path / "d.npz", "--against", model, "--json")
    (verdict,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (verdict["data"], verdict["engine"]["rows"]) == (str(tmp_path / "d.npz"), 3)
    (tmp_path / "t.txt").write_text("two words\nand more words and more\n")
    run("verify", built, "--data", tmp_path / "t.txt", "--against", model)
    other = tiny.encoder(tmp_path / "other.onnx", changed=0.5)
    run("verify", built / "onnxruntime-fp32", "--against", other, code=2)
    assert "is not what" in said(capsys)
    run("verify", built / "onnxruntime-fp32", "--against", other, "--allow-changed-source", code=1)
    assert "is over its budget" in said(capsys)
    np.savez(tmp_path / "bad.npz", input_ids=tiny.feeds()["input_ids"])
    run("verify", built / "onnxruntime-fp32", "--data", tmp_path / "bad.npz", "--against", model, code=2)
    assert "attention_mask" in said(capsys)


def test_the_source_changed_since(tmp_path: Path, capsys: Capture) -> None:
    path = tiny.encoder(tmp_path / "m.onnx")
    run("build", path, "--target", "null", "-o", tmp_path / "o")
    tiny.encoder(path, changed=0.5)
    np.savez(tmp_path / "d.npz", **tiny.feeds())
    run("verify", tmp_path / "o", "--data", tmp_path / "d.npz", code=2)
    assert "--against SOURCE" in said(capsys)
    words = ("verify", tmp_path / "o", "--data", tmp_path / "d.npz", "--against", path)
    run(*words, code=2)
    assert "--allow-changed-source" in said(capsys)
    run(*words, "--allow-changed-source", code=1)
    assert "is not the source that the artifact was built from" in said(capsys)


def test_an_engine_that_cannot_run(built: Path, capsys: Capture) -> None:
    run("verify", built / "null-bf16", "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["artifacts"][0]["engine_executed"] is False
    assert "graph: verified, engine: NOT RUN (the null target has no engine)" in " ".join(err.split())
    run("verify", built / "null-bf16", "--require-engine", code=3)
    assert "--require-engine: the engine of" in said(capsys)


def test_samples_outside_the_profiles_are_said(model: Path) -> None:
    """An engine is asked only for sizes it was built for."""
    found = source.open_source(str(model))
    assert found.run is not None
    small = parse_profile("batch=1:2:4,length=1:8:16", found.dims)
    feeds = {"in": tiny.feeds(2, 5), "long": tiny.feeds(2, 99), "many": tiny.feeds(9, 5)}
    samples = tuple(export_check.Sample(label, f) for label, f in feeds.items())
    truth = verification.Truth(samples, found.run, "made up")
    engine = ReferenceRunner(found.graph, (small,))
    assert verification.compare_runners({"engine": engine}, truth, "custom", lambda *_: None)["engine"].samples == 1
    (note,) = verification._outside_profiles({"engine": engine}, truth)
    assert note == "2 samples lie outside the engine's profiles and were not run on it: long; many"
    with pytest.raises(DataError, match="no samples were compared"):
        verification.compare_runners(
            {"engine": engine}, dataclasses.replace(truth, samples=samples[1:]), "custom", lambda *_: None
        )


# From Python


def refused(runner: Any, feeds: Any, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        runner.run(feeds)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_run(built: Path) -> None:
    runner, feeds = bertc.load(built / "onnxruntime-fp32"), tiny.feeds(2, 5)
    assert [str(s) for s in runner.io["inputs"]] == ["input_ids: int64[batch, length]", "attention_mask: int64[batch, length]"]
    got = runner.run(feeds)["last_hidden_state"]
    assert got.shape == (2, 5, tiny.WIDTH)
    for cast in ({n: a.astype(np.int32) for n, a in feeds.items()}, {n: a.tolist() for n, a in feeds.items()}):
        np.testing.assert_array_equal(runner.run(cast)["last_hidden_state"], got)
    ids = feeds["input_ids"]
    refused(runner, {"input_ids": ids}, "attention_mask: int64[batch, length] is missing", "got input_ids")
    refused(runner, {}, "is missing", "got nothing")
    refused(runner, feeds | {"input_id": ids}, "unknown input 'input_id'", "did you mean 'input_ids'?")
    refused(runner, feeds | {"input_ids": ids[0]}, "needs rank 2, got shape [5]")
    refused(runner, feeds | {"input_ids": ids[:, :4]}, "length=5", "length=4")
    refused(runner, feeds | {"input_ids": ids.astype(np.float32)}, "got dtype float32")
    refused(runner, feeds | {"input_ids": [["a"] * 5] * 2}, "got dtype <U1")
    refused(runner, feeds | {"input_ids": [[1, 2], [3]]}, "is no array")
    refused(runner, feeds | {"input_ids": ids.astype(np.uint64) + np.uint64(2**63)}, "do not fit int64")


def test_run_outside_the_profiles(model: Path, tmp_path: Path) -> None:
    profiles = ("batch=1:1:1,length=1:64:128", "batch=2:8:32,length=1:8:16")
    (made,) = bertc.build(model, tmp_path / "o", targets=["null"], profiles=profiles)
    runner = bertc.load(made.path)
    runner.run(tiny.feeds(1, 128))
    runner.run(tiny.feeds(32, 16))
    refused(runner, tiny.feeds(1, 129), "length=129", "length 1..128 or 1..16")
    refused(runner, tiny.feeds(33, 16), "batch=33", "batch 1..1 or 2..32")
    refused(runner, tiny.feeds(2, 17), "no profile of this artifact fits batch=2, length=17", "batch=2..32,length=1..16")


def test_encode(built: Path, tmp_path: Path) -> None:
    runner = bertc.load(built / "onnxruntime-fp32")
    feeds = runner.encode(["two words", "and"])
    assert feeds["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert runner.run(feeds)["last_hidden_state"].shape == (2, 4, tiny.WIDTH)
    (made,) = bertc.build(tiny.encoder(tmp_path / "m.onnx"), tmp_path / "o", targets=["onnxruntime"])
    with pytest.raises(DataError, match="no tokenizer"):
        bertc.load(made.path).encode(["two"])


def test_python_and_command_line_are_one(model: Path, built: Path, tmp_path: Path) -> None:
    bertc.build(model, tmp_path / "o", targets=["onnxruntime"], precision="fp16")
    assert (tmp_path / "o" / "graph.onnx").read_bytes() == (built / "onnxruntime-fp16" / "graph.onnx").read_bytes()
    assert [v.passed for v in bertc.verify(built)] == [True] * 3
    with pytest.raises(ArtifactError, match="--force"):
        bertc.build(model, tmp_path / "o", targets=["null"])
    bertc.export(model, tmp_path / "o", force=True)
    assert artifact.open_artifact(tmp_path / "o").target == "null"
    with pytest.raises(bertc.errors.RecipeError, match="did you mean 'targets'"):
        bertc.build(model, tmp_path / "p", target=["null"])
