"""The main job on the real model: export once, build for ONNX Runtime and TensorRT-RTX, verify on real text."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import installing
import numpy as np
import pytest
import shallow

import bertc
from bertc import targets
from bertc.artifact.manifest import open_artifact
from bertc.cli._main import run
from bertc.core.errors import DataError, Missing
from bertc.core.files import hash_file
from bertc.core.profiles import Shape
from bertc.graph import provenance as origin
from bertc.graph.model import save_graph
from bertc.quant import engine_choice as worth
from bertc.targets import BuildRequest
from bertc.targets._tensorrt import cost as work

ROOT = Path(__file__).parent.parent.parent
TARGETS = ["onnxruntime=fp32", "tensorrt-rtx:sm89=fp16", "tensorrt-rtx=bf16"]


@pytest.fixture(scope="module")
def export(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("minilm") / "export"
    assert run(["export", str(minilm), "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def built(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("minilm") / "built"
    bertc.build(export, out, targets=TARGETS)
    return out


@pytest.fixture(scope="module")
def first_layer(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one layer, for what does not depend on how many there are."""
    return shallow.checkpoint(minilm, tmp_path_factory.mktemp("minilm") / "checkpoint", layers=1)


def test_directories_are_named_after_target_and_precision(built: Path) -> None:
    assert sorted(p.name for p in built.iterdir()) == [
        "onnxruntime-fp32",
        "tensorrt-rtx-bf16",
        "tensorrt-rtx-sm89-fp16",
    ]


def test_pooling_and_normalisation_are_inside_the_graph(export: Path) -> None:
    found = open_artifact(export)
    assert [str(o) for o in found.outputs] == ["sentence_embedding: float32[batch, 384]"]
    assert found.task == "sentence-embedding"


def test_sentence_transformers_gives_the_same_embeddings(built: Path, minilm: Path, texts: Path) -> None:
    from sentence_transformers import SentenceTransformer

    lines = texts.read_text("utf-8").splitlines()[:16]
    wanted = SentenceTransformer(str(minilm), device="cpu").encode(lines, convert_to_numpy=True)
    runner = bertc.load(built / "onnxruntime-fp32")
    np.testing.assert_allclose(runner.run(runner.encode(lines))["sentence_embedding"], wanted, atol=2e-6)


def test_every_gemm_of_the_engine_is_half_and_the_islands_are_listed(built: Path) -> None:
    for name in ("tensorrt-rtx-sm89-fp16", "tensorrt-rtx-bf16"):
        manifest = open_artifact(built / name).manifest
        gemms = manifest["engine"]["gemms"]
        assert gemms["half"] == gemms["total"] == 48
        assert all(island["reason"] for island in manifest["precision"]["islands"])
        assert manifest["engine"]["constant_ratio"] == pytest.approx(1, abs=0.01)
        assert len(manifest["engine"]["kernels"]["layers"]) == 6
        assert manifest["engine"]["tf32"] is False


def test_the_bytes_of_the_engine_are_those_of_its_kernels_by_hand(built: Path, tmp_path: Path) -> None:
    """In units of [8, 128, 384] in half, 20 a layer, and of its weights; the log of the engine for that shape alone agrees."""
    found = open_artifact(built / "tensorrt-rtx-sm89-fp16")
    rows, graph = found.manifest["engine"]["kernels"]["rows"], found.graph()
    counted = work.graph_work(graph, rows, Shape((("batch", 8), ("length", 128))), 0)
    hidden, wide = 2 * 8 * 128 * 384, 2 * 8 * 128 * 1536
    # q k v 4, q's bias 2, attention 4, projection 2, sum and norm 3, up 1, down 1, sum and norm 3; between up and down `wide`.
    weights = 2 * (4 * 384 * 384 + 2 * 384 * 1536 + 3 * 384 + 1536) + 4 * 4 * 384
    mask = 2 * 8 * 128
    assert counted.layers[0].moved == 20 * hidden + 2 * wide + weights + mask
    request = BuildRequest(graph, found.path / "graph.onnx", tmp_path, "fp16", ("sm89",), found.profiles)
    listed = worth.estimate_engine(graph, found.manifest["engine"], request)
    assert 0.995 * listed.nbytes < (counted.total().moved or 0) <= listed.nbytes


def test_every_node_of_the_typed_graph_has_an_origin(built: Path) -> None:
    """None is excepted: casts and swaps have that of the node they stand beside."""
    for name in ("onnxruntime-fp32", "tensorrt-rtx-bf16", "tensorrt-rtx-sm89-fp16"):
        nodes = list(open_artifact(built / name).graph().model.graph)
        assert not [node.name for node in nodes if not origin.origin_of(node).nodes or origin.ORIGIN not in node.metadata_props]
        assert {key for node in nodes for key in node.metadata_props} == {"bertc.origin", "bertc.rule"}


def test_the_softmax_of_each_layer_is_named_by_its_module_and_line(built: Path) -> None:
    """Fused into FusedAttention, taken apart for TensorRT-RTX, typed float16."""
    nodes = open_artifact(built / "tensorrt-rtx-sm89-fp16").graph().model.graph
    found = [origin.origin_of(node) for node in nodes if node.op_type == "Softmax"]
    assert [o.module for o in found] == [f"model.encoder.layer.{at}.attention.self" for at in range(6)]
    for each in found:
        assert re.fullmatch(r"\S+ \(BertSelfAttention\) modeling_bert\.py:\d+", str(each)), str(each)
        (place,) = each.places
        assert place.startswith("transformers/models/bert/modeling_bert.py:")
        assert len(each.nodes) == 1
    products = [origin.origin_of(node).module for node in nodes if node.op_type == "MatMul"][:8]
    parts = ("self.query", "self.key", "self.value", "self", "self", "output.dense")
    wanted = [f"attention.{part}" for part in parts] + ["intermediate.dense", "output.dense"]
    assert products == [f"model.encoder.layer.0.{part}" for part in wanted]


def test_origins_do_not_change_the_engine(built: Path, tmp_path: Path) -> None:
    found = open_artifact(built / "tensorrt-rtx-sm89-fp16")
    graph = found.graph()
    for node in graph.model.graph:
        node.metadata_props.clear()
    save_graph(graph, tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").stat().st_size < (found.path / "graph.onnx").stat().st_size
    request = BuildRequest(graph, tmp_path / "graph.onnx", tmp_path, "fp16", ("sm89",), found.profiles)
    targets.get("tensorrt-rtx").build(request)
    assert hash_file(tmp_path / "engine.plan") == hash_file(found.path / "engine.plan")


def test_an_engine_that_did_not_run_is_never_called_verified(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = built / "tensorrt-rtx-sm89-fp16"
    assert run(["verify", str(engine), "--json"]) == 0
    printed = capsys.readouterr()
    (verdict,) = json.loads(printed.out)["artifacts"]
    assert verdict["engine_executed"] is False
    assert verdict["engine"] is None
    assert "graph: verified, engine: NOT RUN" in printed.err
    assert run(["verify", str(engine), "--require-engine"]) == 3
    with pytest.raises(Missing, match="cannot run here"):
        bertc.load(engine)


def test_fp16_is_close_on_real_text(built: Path, minilm: Path, texts: Path) -> None:
    names = ("tensorrt-rtx-sm89-fp16", "onnxruntime-fp32")
    verdicts = {name: bertc.verify(built / name, data=texts, against=str(minilm))[0] for name in names}
    fp16 = verdicts["tensorrt-rtx-sm89-fp16"].result.outputs[0]
    assert fp16.cosine_min >= 0.99999
    assert fp16.relative > 1e-5, "emulated rounding must show: an exact result would mean that nothing was rounded"
    assert verdicts["onnxruntime-fp32"].engine_executed
    assert verdicts["onnxruntime-fp32"].result.outputs[0].relative <= 1e-5


def test_a_profile_out_of_range_is_refused(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["build", str(export), "--fp16", "--target", "tensorrt-rtx:sm89", "-o", str(tmp_path / "out")]
    assert run([*command, "--profile", "length=1:128:513"]) == 2
    assert "the largest length this model takes is 512" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_profiles(first_layer: Path, tmp_path: Path) -> None:
    profiles = ["batch=1:1:1,length=1:16:32", "batch=1:8:32,length=33:128:256"]
    (made,) = bertc.build(first_layer, tmp_path / "out", targets=["tensorrt-rtx:sm89=fp16"], profiles=profiles, verify=False)
    assert [str(p["length"]) for p in made.profiles] == ["1:16:32", "33:128:256"]


def test_encode_reads_the_artifact_tokenizer(built: Path) -> None:
    runner = bertc.load(built / "onnxruntime-fp32")
    feeds = runner.encode(["one", "a somewhat longer text"])
    assert feeds["input_ids"].shape[1] < 20, "the padding to 128 baked into tokenizer.json must be overridden"
    with pytest.raises(DataError, match="needs rank 2"):
        runner.run({**feeds, "input_ids": feeds["input_ids"][0]})


def test_the_page_of_a_real_engine(built: Path) -> None:
    """Every number of report.html is that of report.json, and every kernel of the engine is there."""
    folder = built / "tensorrt-rtx-sm89-fp16"
    report, html = json.loads((folder / "report.json").read_text("utf-8")), (folder / "report.html").read_text("utf-8")
    numbers = re.findall(r'<data value="([^"]*)" data-json="([^"]*)">', html)
    assert len(numbers) > 200
    for value, where in numbers:
        found = report
        for key in unescape(where).replace("~1", "\0").split("/")[1:]:
            found = found[int(key)] if isinstance(found, list) else found[key.replace("\0", "/").replace("~0", "~")]
        assert json.loads(value) == found, where
    assert sum(report["summary"]["kernels"].values()) == report["engine"]["kernels"]["count"] > 40
    shown = unescape(html.replace("<wbr>", ""))  # where a line may break
    assert all(row["name"] in shown for row in report["engine"]["kernels"]["rows"])


def test_verify_in_an_environment_without_torch(built: Path, export: Path, minilm: Path, texts: Path, tmp_path: Path) -> None:
    """`bertc[rtx,cpu]` as pip installs it from the checkout, what it requires by its own metadata, and nothing else.

    Building again there, in another process and without torch, gives the same bytes.
    """
    site, linked = tmp_path / "bertc", tmp_path / "required"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(_source(tmp_path))], check=True, capture_output=True)
    (installed,) = importlib.metadata.distributions(path=[str(site)])
    installing.link(installing.required(installed, ("rtx", "cpu")), linked)
    program = "import sys; sys.path[:0] = sys.argv[1:3]; from bertc.cli import main; main(sys.argv[3:])"
    python = [sys.executable, "-I", "-S", "-c"]

    def bertc_there(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*python, program, str(site), str(linked), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    absent = subprocess.run(
        [*python, "import sys; sys.path[:0] = sys.argv[1:]; import torch", str(site), str(linked)],
        capture_output=True,
        check=False,
    )
    assert b"No module named 'torch'" in absent.stderr
    done = bertc_there("verify", str(built), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
    done = bertc_there("verify", str(built / "onnxruntime-fp32"), "--data", str(texts))
    assert done.returncode == 2, done.stderr
    assert "--against" in done.stderr
    done = bertc_there("verify", str(built / "onnxruntime-fp32"), "--data", str(texts), "--against", str(minilm))
    assert done.returncode == 3, done.stderr
    assert "bertc[export]" in done.stderr
    rebuilt = tmp_path / "rebuilt"
    done = bertc_there("build", str(export), "--target", "tensorrt-rtx:sm89=fp16", "-o", str(rebuilt))
    assert done.returncode == 0, done.stderr
    for file in ("graph.onnx", "engine.plan", "goldens.npz"):  # the manifest names the recipe's targets, which differ
        assert hash_file(rebuilt / file) == hash_file(built / "tensorrt-rtx-sm89-fp16" / file), file


def _source(tmp_path: Path) -> Path:
    """A copy of the checkout: pip would leave a build folder in this one."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("compiler", "plugins", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_second_environment_at_another_path_gives_the_same_bytes(first_layer: Path, tmp_path: Path) -> None:
    """Stack traces of the exporter carry absolute paths: none may reach the graph or the plan."""
    bertc.build(first_layer, tmp_path / "here", targets=["tensorrt-rtx:sm89=fp16"], verify=False)
    copy = tmp_path / "elsewhere" / "site-packages"
    copy.parent.mkdir()
    installing.link(installing.required(importlib.metadata.distribution("bertc"), ("export", "cpu", "rtx")), copy)
    package = _source(tmp_path)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "bertc").symlink_to(package / "compiler")
    program = "import sys; sys.path[:0] = sys.argv[1:3]; from bertc.cli import main; main(sys.argv[3:])"
    words = ["build", str(first_layer), "--target", "tensorrt-rtx:sm89=fp16", "--no-verify", "-o", str(tmp_path / "out")]
    command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path / "path"), str(copy), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in ("graph.onnx", "engine.plan"):
        assert hash_file(tmp_path / "out" / file) == hash_file(tmp_path / "here" / file), file
    assert str(tmp_path).encode() not in (tmp_path / "out" / "graph.onnx").read_bytes()
