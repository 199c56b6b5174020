"""Low-bit engines for sm89: what their kernels read and store, by the builder's log, and which engine is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lowbit
import pytest

from bertc.artifact.manifest import Artifact, open_artifact
from bertc.cli import _main as cli
from bertc.core.errors import BuildFailed
from bertc.graph.model import save_graph
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.targets._tensorrt import quantised_check as _int8

SM89 = ("--target", "tensorrt-rtx:sm89")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = lowbit.encoder(tmp_path_factory.mktemp("lowbit"), 64)
    lowbit.texts(made.parent / "texts.txt")
    return made


def built(model: Path, *words: str) -> Artifact:
    out = model.parent / "-".join(("out", *words)).replace("/", "_")
    data = () if "weights" in words else ("--data", str(model.parent / "texts.txt"))
    assert cli.run(["build", str(model), *words, *SM89, *data, "-o", str(out)]) == 0
    return open_artifact(out)


def report(found: Artifact) -> dict[str, Any]:
    return dict(json.loads((found.path / "report.json").read_text("utf-8")))


def relisted(found: Artifact) -> Any:
    """The kernels of the artifact's graph, for the sizes of its profile."""
    graph = found.graph()
    folder = found.path / "again"
    folder.mkdir(exist_ok=True)
    save_graph(graph, folder / "graph.onnx")
    request = BuildRequest(graph, folder / "graph.onnx", folder, found.precision, ("sm89",), tuple(found.profiles))
    return tensorrt_rtx.list_kernels(request)


def test_fp8_gemms_read_fp8_and_attention_does_not(model: Path) -> None:
    found = built(model, "--fp8")
    assert found.manifest["engine"]["gemms"] == {"total": 4, "half": 4, "asked": 2, "fp8": 2}
    kernels = relisted(found)
    typed = [k for k in kernels if any(t.dtype == "FP8" for t in (*k.inputs, *k.constants))]
    assert len(typed) >= 2
    assert all("mha" not in k.name for k in typed)
    half = [dataclasses.replace(k, inputs=_halved(k.inputs), constants=_halved(k.constants)) for k in kernels]
    with pytest.raises(BuildFailed, match="fp8 was requested, 2 of 2 quantised GEMMs do not read fp8"):
        _int8.check_quantised(found.graph(), half)


def _halved(tensors: Any) -> Any:
    return tuple(dataclasses.replace(t, dtype="Half" if t.dtype in ("FP8", "Int8") else t.dtype) for t in tensors)


def test_weights_are_stored_as_int8(model: Path) -> None:
    found = built(model, "--int8", "weights")
    assert found.manifest["engine"]["gemms"] == {"total": 4, "half": 4, "int8_weights": 2}
    kernels = relisted(found)
    stored = {t.name: t.nbytes for k in kernels for t in k.constants if t.dtype == "Int8"}
    assert sum(stored.values()) == 4 * 64 * 64
    half = [dataclasses.replace(k, constants=_halved(k.constants)) for k in kernels]
    with pytest.raises(BuildFailed, match="int8 weights were requested, 2 of 2 GEMMs read none"):
        _int8.check_quantised(found.graph(), half)


def test_an_engine_that_moves_less_with_no_more_kernels_is_kept(model: Path) -> None:
    found = built(model, "--int8")
    worth = report(found)["int8"]["worth"]
    assert found.precision == worth["kept"] == "int8"
    assert worth["fp16"]["kernels"] >= worth["int8"]["kernels"] == found.manifest["engine"]["kernels"]["count"]
    assert worth["int8"]["bytes"] < worth["fp16"]["bytes"]
    assert worth["int8"]["gflop"] == worth["fp16"]["gflop"] == pytest.approx(worth["int8"]["int8_gflop"])
    # Four projections, and two products of attention, of 8 rows of 128 places.
    assert worth["int8"]["gflop"] == pytest.approx(2 * 8 * 128 * (4 * 64 * 64 + 2 * 128 * 64) / 1e9, abs=1e-4)


def test_static_insists(model: Path) -> None:
    found = built(model, "--int8", "static")
    assert found.precision == "int8-static" and "worth" not in report(found)["int8"]
    assert found.manifest["engine"]["gemms"]["int8"] >= 4
