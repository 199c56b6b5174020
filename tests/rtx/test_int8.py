"""int8 engines: every quantised GEMM is proven to read int8 by the builder's log, and one that does not fails the build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest

import bertc
from bertc.cli._main import run
from bertc.core.errors import BuildFailed
from bertc.graph.model import load_graph
from bertc.targets import BuildRequest, Int8Attention, tensorrt_rtx
from bertc.targets._tensorrt import adapter as _trt
from bertc.targets._tensorrt import kernel_log as _kernels
from bertc.targets._tensorrt import quantised_check as _int8

TARGET = "tensorrt-rtx:sm89"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, random biases, its tokenizer beside it."""
    out = tmp_path_factory.mktemp("int8") / "export"
    bertc.export(
        models.sentence_transformer(out.parent / "model", {"pooling_mode_mean_tokens": True}, base=models.checkpoint("features")),
        out,
    )
    return out


@pytest.fixture(scope="module")
def texts(export: Path) -> Path:
    rng = np.random.default_rng(0)
    path = export.parent / "texts.txt"
    path.write_text("\n".join(" ".join(rng.choice(models.WORDS[5:], rng.integers(2, 12))) for _ in range(120)), "utf-8")
    return path


@pytest.fixture(scope="module")
def built(export: Path, texts: Path) -> bertc.Artifact:
    # A random model is no trained one: what it loses is of no interest here, only what was compiled.
    options: dict[str, Any] = {"precision": "int8-static", "data": str(texts), "budget": {"max_drop": 0.9, "cosine": -1.0}}
    (made,) = bertc.build(export, export.parent / "built", targets=[TARGET], **options)
    return made


@pytest.fixture(scope="module")
def log(built: bertc.Artifact, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The builder's own log of the artifact's graph."""
    folder = tmp_path_factory.mktemp("log")
    path = built.path / "graph.onnx"
    ranges = built.profiles
    request = BuildRequest(load_graph(path), path, folder, "int8", ("sm89",), ranges)
    return _trt._compile("tensorrt_rtx", request, None, folder)[1]


def test_every_quantised_gemm_is_proven_int8(built: bertc.Artifact) -> None:
    """Two layers of q k v in one, the two products of attention, its projection and two GEMMs: six each."""
    engine, int8 = built.manifest["engine"], built.manifest["int8"]
    assert engine["gemms"]["asked"] == engine["gemms"]["int8"] == 12
    assert int8["share"] == 1.0
    assert all(site["int8"] for site in int8["sites"])
    assert built.precision == "int8-static"


def test_attention_is_one_int8_kernel_a_layer_and_layers_are_small(built: bertc.Artifact) -> None:
    rows = built.manifest["engine"]["kernels"]["rows"]
    attention = [row for row in rows if "mha" in row["name"].lower()]
    assert len(attention) == 2, [row["name"] for row in rows]
    layers = built.manifest["engine"]["kernels"]["layers"]
    assert max(layers.values() if isinstance(layers, dict) else layers) <= 10


def test_a_norm_is_written_in_half_for_its_residual_and_in_int8_for_its_gemm(built: bertc.Artifact, log: str) -> None:
    """And never in float32, though its arithmetic is: the residual behind it would have to read twice the bytes."""
    scales = [n for n in built.graph().model.graph if n.op_type == "Mul" and str(n.name).endswith("/Mul") and _norm(n)]
    norms = {_kernels.node_name(node) for node in map(_norm, scales) if node is not None}
    assert len(norms) == 4, "of the embeddings and three more; no GEMM reads the last"
    assert {v.dtype for node in scales for v in node.inputs if v is not None} == {ir.DataType.FLOAT16}
    kernels = [kernel for kernel in _kernels.parse_kernels(log) if norms & set(kernel.onnx_nodes)]
    assert [sorted(tensor.dtype for tensor in kernel.outputs) for kernel in kernels] == [["Half", "Int8"]] * 4


def _norm(node: ir.Node) -> ir.Node | None:
    """The LayerNormalization that a node reads, through a cast."""
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    maker = maker.inputs[0].producer() if maker is not None and maker.op_type == "Cast" and maker.inputs[0] else maker
    return maker if maker is not None and maker.op_type == "LayerNormalization" else None


# (which kernel, which of its int8 operands, GEMMs it computes)
OPERANDS = [("gemm", 0, 1), ("gemm", 1, 1), ("mha", 0, 2), ("mha", 1, 2), ("mha", 2, 2)]


@pytest.mark.parametrize(("kind", "operand", "broken"), OPERANDS)
def test_a_gemm_that_is_not_int8_in_the_engine_fails_the_build(
    kind: str, operand: int, broken: int, built: bertc.Artifact, log: str
) -> None:
    """The builder's log with one operand of one kernel in Half: what a builder that takes liberties would leave."""
    graph = built.graph()
    quantised = [n for n in graph.model.graph if n.op_type == "MatMul" and None not in _int8._types(n)]
    weighted = next(n for n in quantised if n.inputs[1].producer().inputs[0].const_value is not None)
    name = _kernels.node_name(weighted) if kind == "gemm" else "_gemm_mha_v2"
    lines = log.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"Name: {name}_myl"))
    read, written = lines[at].split("Outputs: ", 1)
    parts = read.split("Datatype: Int8")
    assert len(parts) > operand + 1
    changed = "Datatype: Int8".join(parts[: operand + 1]) + "Datatype: Half" + "Datatype: Int8".join(parts[operand + 1 :])
    lines[at] = f"{changed}Outputs: {written}"
    said = f"int8 was requested, {broken} of 12 quantised GEMMs do not read int8 in the engine: "
    with pytest.raises(BuildFailed, match=said) as failed:
        _int8.check_quantised(graph, _kernels.parse_kernels("\n".join(lines)))
    if kind == "gemm":
        assert name in str(failed.value)


def test_a_gemm_that_no_kernel_names_fails_the_build(built: bertc.Artifact, log: str) -> None:
    graph = built.graph()
    with pytest.raises(BuildFailed):
        _int8.check_quantised(graph, [])
    some = [k for k in _kernels.parse_kernels(log) if not k.onnx_nodes]
    with pytest.raises(BuildFailed):
        _int8.check_quantised(graph, some)


def test_a_graph_without_pairs_asks_for_nothing(built: bertc.Artifact, log: str) -> None:
    copy = built.graph().copy()
    for node in list(copy.model.graph):
        if node.op_type in ("MatMul", "Gemm"):
            copy.model.graph.remove(node, safe=False)
    assert _int8.check_quantised(copy, _kernels.parse_kernels(log)) == {}


def test_turing_is_refused(export: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(export), "--int8", "--target", "tensorrt-rtx:sm75", "--data", str(texts), "-o", str(tmp_path / "out")]
    assert run(words) != 0
    assert not (tmp_path / "out").exists()
    assert "sm75" in capsys.readouterr().err


def test_where_nothing_fits_the_fp16_engine_is_the_one_that_fp16_builds(export: Path, texts: Path, tmp_path: Path) -> None:
    """Lowered as fp16 is: packed projections are best with Q/DQ pairs and not without."""
    limit: dict[str, Any] = {"precision": "int8-static", "data": str(texts), "budget": {"max_drop": 0.0}}
    (fallen,) = bertc.build(export, tmp_path / "fallen", targets=[TARGET], **limit)
    (half,) = bertc.build(export, tmp_path / "half", targets=[TARGET], precision="fp16")
    assert fallen.precision == "fp16"
    assert (fallen.path / "engine.plan").read_bytes() == (half.path / "engine.plan").read_bytes()
    assert "max_drop" in fallen.manifest["recipe"]["budget"]


def test_attention_over_more_places_than_its_kernel_takes_is_half_and_that_is_said(
    export: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model takes 40 places; what is not known of longer ones here is in benchmarks/bench_attention.py."""
    monkeypatch.setattr(tensorrt_rtx, "INT8_ATTENTION", Int8Attention(39, (16,)))
    words = ["build", str(export), "--target", TARGET, "--int8", "static", "--data", str(texts), "--no-verify"]
    assert run([*words, "-o", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no int8 kernel for attention over 40 positions, only up to 39" in said
    gemms = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["engine"]["gemms"]
    assert gemms["asked"] == gemms["int8"] == 8, "the four projections of two layers"


def test_building_again_gives_the_same_plan(export: Path, texts: Path, built: bertc.Artifact, tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": "int8-static", "data": str(texts), "budget": {"max_drop": 0.9, "cosine": -1.0}}
    (again,) = bertc.build(export, tmp_path / "again", targets=[TARGET], **options)
    for name in ("graph.onnx", "engine.plan"):
        assert (again.path / name).read_bytes() == (built.path / name).read_bytes()
    assert again.manifest["int8"] == built.manifest["int8"]


def test_where_int8_adds_launches_and_spares_little_fp16_is_kept(export: Path, texts: Path, tmp_path: Path) -> None:
    """As asked for by --int8 alone. At a width of 64 there are no bytes worth the kernels that lost fusions add."""
    options: dict[str, Any] = {"precision": "int8", "data": str(texts), "budget": {"cosine": -1.0}}
    (made,) = bertc.build(export, tmp_path / "made", targets=[TARGET], profiles=["batch=1:1:4,length=4:8:16"], **options)
    worth = made.manifest["int8"]["worth"]
    assert made.precision == worth["kept"] == "fp16"
    assert worth["int8"]["kernels"] > worth["fp16"]["kernels"] == made.manifest["engine"]["kernels"]["count"]
    assert worth["int8"]["estimated_us"] > worth["fp16"]["estimated_us"]
    assert "QuantizeLinear" not in made.graph().op_counts()
    assert sorted(p.name for p in made.path.glob("*.onnx")) == ["graph.onnx"]
    notes = json.loads((made.path / "report.json").read_text("utf-8"))["notes"]
    assert any("int8 engine: estimated" in note and "kept fp16" in note and "--int8 static" in note for note in notes)
