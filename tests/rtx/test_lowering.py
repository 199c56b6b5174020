"""Kernels that TensorRT-RTX makes of the lowered graph. The build itself checks GEMM types and that no weight was lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bertc import canonical, precision
from bertc.graph import Graph, save
from bertc.profiles import Range
from bertc.targets import BuildRequest, _lower_trt, _trt_graph, tensorrt_rtx

sys.path.insert(0, str(Path(__file__).parent.parent / "plain"))
import fused

RANGES = {"batch": Range(1, 8, 32), "length": Range(1, 128, 256)}


def kernels(graph: Graph, mode: str, folder: Path, sm: str = "sm89") -> dict[str, Any]:
    lowered = _trt_graph.tidy(canonical.expand(graph, _lower_trt.lowerings((sm,))))
    typed = precision.get(mode).apply(lowered).graph
    save(typed, folder / "graph.onnx")
    built = tensorrt_rtx.build(BuildRequest(typed, folder / "graph.onnx", folder, mode, (sm,), (RANGES,)))
    return dict(built.facts["kernels"])


@pytest.mark.parametrize(
    ("mode", "query_bias", "wanted"),
    [("fp16", True, 8), ("bf16", True, 8), ("fp16", False, 7), ("fp32", True, 14), ("fp32", False, 13)],
)
def test_kernels_of_a_layer(mode: str, query_bias: bool, wanted: int, tmp_path: Path) -> None:
    found = kernels(fused.encoder(layers=4, query_bias=query_bias), mode, tmp_path)
    assert found["layers"][1:3] == [wanted, wanted]


def test_outside_the_layers_are_embeddings_mask_and_the_last_norms_second_half(tmp_path: Path) -> None:
    found = kernels(fused.encoder(layers=4), "fp16", tmp_path)
    assert found["count"] == sum(found["layers"]) + found["rest"] == 4 * 8 + 4  # and the head


def test_heads_of_odd_size_take_the_packed_form(tmp_path: Path) -> None:
    assert kernels(fused.encoder(layers=4, size=13), "fp16", tmp_path)["layers"][1:3] == [9, 9]


def test_turing_takes_the_packed_form(tmp_path: Path) -> None:
    assert kernels(fused.encoder(layers=4), "fp16", tmp_path, "sm75")["layers"][1:3] == [9, 9]
