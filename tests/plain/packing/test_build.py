"""`bertc build --packed`: what is written, verified and refused."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

import bertc
from bertc.artifact import manifest as artifact
from bertc.cli import _main as cli
from bertc.fusions import engine
from bertc.targets import refusal
from bertc.targets._registry import parse_spec

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tagger() -> Path:
    """An export of a small BERT with an output at each position, to build from without PyTorch."""
    path = models.folder() / "packed-tagger"
    assert cli.run(["export", str(models.checkpoint("token-classification")), "-o", str(path)]) == 0
    return path


def built(source: Path, out: Path, *words: str, code: int = 0) -> Path:
    assert cli.run(["build", str(source), "--packed", "-o", str(out), *words]) == code
    return out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_is_verified_and_answers_as_the_padded_artifact(tagger: Path, precision: str, tmp_path: Path, capsys: Capture) -> None:
    packed = built(tagger, tmp_path / "packed", f"--{precision}")
    assert "target onnxruntime: it runs without padding" in " ".join(capsys.readouterr().err.split())
    assert cli.run(["build", str(tagger), f"--{precision}", "--target", "onnxruntime", "-o", str(tmp_path / "padded")]) == 0
    assert cli.run(["verify", str(packed)]) == 0
    facts = artifact.open_artifact(packed).manifest["packing"]
    assert facts["mask"] == "attention_mask" and facts["outputs"] == ["logits"] and facts["attentions"] > 0
    rng = np.random.default_rng(0)
    mask = (np.arange(9) < rng.integers(1, 10, 6)[:, None]).astype(np.int64)
    feeds = {"input_ids": rng.integers(0, 50, mask.shape), "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    runners = bertc.load(packed), bertc.load(tmp_path / "padded")
    got, wanted = (each.run({spec.name: feeds[spec.name] for spec in each.inputs})["logits"] for each in runners)
    assert not got[mask == 0].any()
    assert (
        cli.run(
            ["bench", str(packed), "--against", str(tmp_path / "padded"), "--shapes", "4x9", "--fill", "0.5", "--rounds", "1"]
        )
        == 0
    )
    assert "without padding" in capsys.readouterr().err
    assert np.abs(got - wanted)[mask == 1].max() < (1e-5 if precision == "fp32" else 5e-3) * np.abs(wanted).max()


def test_a_row_without_tokens_is_a_number_in_half_precision_whatever_row_the_samples_masked(tmp_path: Path) -> None:
    """No sample masks anything in the group of the longest rows. A row without tokens is among them, kept whole."""
    source, built_as = tmp_path / "export", {"packed": ["--packed"], "padded": []}
    assert cli.run(["export", str(models.one_layer("sequence-classification")), "-o", str(source)]) == 0
    rng, mask = np.random.default_rng(0), np.ones((6, 9), np.int64)
    mask[0] = mask[4] = mask[1, 3:] = 0
    feeds = {"input_ids": rng.integers(0, 50, mask.shape), "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    found = []
    for name, words in built_as.items():
        assert cli.run(["build", str(source), *words, "--fp16", "--target", "onnxruntime", "-o", str(tmp_path / name)]) == 0
        runner = bertc.load(tmp_path / name)
        found.append(runner.run({spec.name: feeds[spec.name] for spec in runner.inputs})["logits"])
    assert np.isfinite(found[0]).all()
    assert np.abs(found[0] - found[1]).max() < 5e-3 * np.abs(found[1]).max()


def test_dynamic_int8_keeps_the_order_that_branches_need(tagger: Path) -> None:
    """ONNX Runtime's quantiser sorts nodes without a look into an If."""
    from bertc.packing import pack
    from bertc.quant.dynamic import count_integer_gemms, dynamic_int8
    from bertc.source import open_source
    from bertc.targets import onnxruntime

    source = open_source(str(tagger))
    packed = onnxruntime.lower(pack(engine.fuse(source.graph, source.dims, prove=False).graph).graph)
    quantised = dynamic_int8(packed)
    seen = {*quantised.model.graph.inputs, *quantised.model.graph.initializers.values()}
    for node in quantised.model.graph:
        inner = [
            value
            for each in node.attributes.values()
            if each.type == ir.AttributeType.GRAPH
            for n in each.as_graph()
            for value in n.inputs
        ]
        outer = [v for v in inner if v is not None and v.producer() is not None and v.producer().graph is quantised.model.graph]
        assert seen.issuperset(v for v in (*node.inputs, *outer) if v is not None)
        seen |= set(node.outputs)
    assert count_integer_gemms(quantised) > 4


def test_two_targets_of_one_build_are_both_held_against_the_padded_graph(tagger: Path, tmp_path: Path, capsys: Capture) -> None:
    """And the CUDA artifact, which this machine cannot run, is verified as its typed graph."""
    out = built(tagger, tmp_path / "out", "--target", "onnxruntime=fp32", "--target", "onnxruntime-cuda=fp16")
    said = " ".join(capsys.readouterr().err.split())
    assert "packed graph against padded graph for onnxruntime and onnxruntime-cuda" in said
    made = {each.target: each for each in (artifact.open_artifact(path) for path in artifact.find_artifacts(out))}
    assert made["onnxruntime-cuda"].manifest["packing"] == made["onnxruntime"].manifest["packing"]
    assert made["onnxruntime-cuda"].manifest["graph"]["ops"]["com.microsoft.PackedAttention"] > 0
    assert made["onnxruntime-cuda"].manifest["engine"]["placement"]["cpu"] == []
    assert cli.run(["verify", str(out)]) == 0


def test_what_cannot_be_packed_is_refused_before_anything_is_written(tagger: Path, tmp_path: Path, capsys: Capture) -> None:
    built(tagger, tmp_path / "a", "--target", "tensorrt-rtx=fp16", code=2)
    assert "NonZero plugin creator version 1 was not found" in " ".join(capsys.readouterr().err.split())
    built(tagger, tmp_path / "b", "--no-fuse", code=2)
    assert "nothing was" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_only_targets_that_have_a_form_take_it() -> None:
    assert refusal(parse_spec("onnxruntime"), "fp32", packed=True) is None
    assert refusal(parse_spec("onnxruntime-cuda"), "fp16", packed=True) is None
    assert "fp16 and fp32" in str(refusal(parse_spec("onnxruntime-cuda"), "bf16", packed=True))
    assert refusal(parse_spec("tensorrt"), "fp16", packed=True) is None
    assert "onnxruntime, onnxruntime-cuda, tensorrt have" in str(refusal(parse_spec("null"), "fp32", packed=True))
    for name in ("tensorrt-rtx", "null"):
        assert name in str(refusal(parse_spec(name), "fp32", packed=True))
