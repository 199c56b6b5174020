"""The bytes of an engine, counted twice: from its typed graph (bertc bench), and from a build log where all sizes are numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import lowbit
import pytest
import tiny

import bertc
from bertc.artifact.manifest import Artifact
from bertc.bench import interleaved as bench
from bertc.cli import _main as cli
from bertc.core.profiles import Shape
from bertc.graph.model import save_graph
from bertc.quant import engine_choice as worth
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.targets._tensorrt import cost as work
from bertc.targets._tensorrt.kernel_log import Kernel

BATCH, LENGTH, WIDTH = 8, 128, 64
SHAPE = Shape((("batch", BATCH), ("length", LENGTH)))
TOKENS = BATCH * LENGTH
HIDDEN = TOKENS * WIDTH  # elements of [batch, length, width]
# What the projection behind attention reads and writes. int8: two scalars more; its scale of each column is the next kernel's.
PROJECTION = {"fp16": 2 * HIDDEN + 2 * WIDTH**2 + 2 * HIDDEN, "int8": HIDDEN + WIDTH**2 + 2 * HIDDEN}
SCALARS = 2 * 4
# The fp16 engine, kernel by kernel: ids and all rows there are of the table; q, k and v in one product; the mask;
# attention; its projection; the sum with x and the norm, in float32, of ones and zeros that are folded.
HALF = (
    (8 * TOKENS + 2 * tiny.VOCABULARY * WIDTH + 2 * HIDDEN)
    + (2 * HIDDEN + 2 * 3 * WIDTH**2 + 2 * 3 * HIDDEN)
    + (8 * TOKENS + 2 * TOKENS)
    + (2 * 3 * HIDDEN + 2 * TOKENS + 2 * HIDDEN)
    + PROJECTION["fp16"]
    + (2 * 2 * HIDDEN + 4 * HIDDEN)
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    model = lowbit.encoder(tmp_path_factory.mktemp("bytes"), WIDTH)
    texts = str(lowbit.texts(model.parent / "texts.txt"))
    int8: dict[str, Any] = {"precision": "int8-static", "data": texts, "budget": {"max_drop": 0.9, "cosine": -1.0}}
    common: dict[str, Any] = {
        "targets": ["tensorrt-rtx:sm89"],
        "profiles": [f"batch=1:{BATCH}:16,length=4:{LENGTH}:256"],
        "fuse": False,
    }
    (half,) = bertc.build(model, model.parent / "fp16", **common, precision="fp16")
    (quantised,) = bertc.build(model, model.parent / "int8", **common, **int8)
    return {"fp16": half, "int8": quantised}


def request(found: Artifact, folder: Path) -> BuildRequest:
    return BuildRequest(found.graph(), found.path / "graph.onnx", folder, found.precision, ("sm89",), found.profiles)


def listed(found: Artifact, folder: Path) -> list[Kernel]:
    """The kernels of an engine for SHAPE alone."""
    fixed, path = worth.graph_at_opt(found.graph(), found.profiles[0]), folder / "fixed.onnx"
    save_graph(fixed, path)
    whole = dataclasses.replace(request(found, folder), graph=fixed, graph_path=path, profiles=({},))
    return [kernel for kernel in tensorrt_rtx.list_kernels(whole) if not kernel.host]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_graph_and_the_log_agree(
    precision: str, built: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = built[precision]
    if not bench.why_not_runnable(found):
        pytest.skip("this machine runs the engine")
    assert cli.run(["bench", str(found.path), "--shapes", str(SHAPE), "--json"]) == 0
    out, err = capsys.readouterr()
    (document,) = json.loads(out)["shapes"]
    engine = worth.estimate_engine(found.graph(), found.manifest["engine"], request(found, tmp_path))
    assert engine.unknown == document["unknown"] == 0
    # Kernels of the builder's own making, which copy and name no node, are in the log alone, and the table says so.
    nameless = [kernel for kernel in listed(found, tmp_path) if not kernel.onnx_nodes]
    own = [row for row in found.manifest["engine"]["kernels"]["rows"] if not row["onnx_nodes"]]
    assert document["nameless"] == len(own) > 0 and re.search(rf"{len(own)} kernels? names? no node", err)
    moved = document["layers"][-1]["moved"]
    # Some of the builder's own copies name a node, and of those the table knows nothing.
    assert 0.85 * (engine.nbytes - worth.bytes_moved(nameless)) < moved <= engine.nbytes - worth.bytes_moved(nameless)
    if precision == "fp16":
        assert moved == HALF


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_one_kernel_by_hand(precision: str, built: dict[str, Artifact], tmp_path: Path) -> None:
    found, name = built[precision], "n_mixed"
    kernel = next(kernel for kernel in listed(found, tmp_path) if name in kernel.onnx_nodes)
    assert worth.bytes_moved([kernel]) == PROJECTION[precision] + SCALARS
    rows = [{**row, "layer": ""} for row in found.manifest["engine"]["kernels"]["rows"]]
    next(row for row in rows if name in row["onnx_nodes"])["layer"] = "kernel.0"
    counted = {layer.name: layer.moved for layer in work.graph_work(found.graph(), rows, SHAPE, 0).layers}
    scales = 2 * WIDTH if precision == "int8" else 0
    assert counted["kernel.0"] == PROJECTION[precision] + scales
