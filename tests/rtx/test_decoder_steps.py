"""Kernels of a decoder's step: the compiler makes one attention kernel a layer, which also puts the new key into the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from bertc import precision
from bertc.core.profiles import Range
from bertc.graph.model import Graph, save_graph
from bertc.ops import expansion as canonical
from bertc.ops.builder import Builder
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

HEADS, SIZE, WIDTH = 4, 16, 64


def step() -> Graph:
    """Two layers of FusedPastAttention and nothing else; no bias is zero."""
    op, rng = Builder(), np.random.default_rng(0)

    def weight(name: str, *shape: int) -> ir.Value:
        return op.initializer(ir.tensor((rng.standard_normal(shape) / 8).astype(np.float32), name=name), name=name)

    def fed(name: str, *dims: int | str, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(kind))

    mask = fed("attention_mask", "batch", "places", kind=ir.DataType.INT64)
    inputs, outputs = [fed("x", "batch", 1, WIDTH), mask], []
    score, x = op.FusedScoreMask(mask, low=-30000.0, _domain="bertc"), inputs[0]
    score.name, score.shape, score.dtype = "score", ir.Shape(["batch", 1, 1, "places"]), ir.DataType.FLOAT
    for layer in range(2):
        cache = [fed(f"{name}{layer}", "batch", HEADS, "past", SIZE) for name in ("k", "v")]
        w = [weight(f"w{layer}", WIDTH, 3 * WIDTH), weight(f"b{layer}", 3 * WIDTH), weight(f"wo{layer}", WIDTH, WIDTH)]
        made = op.FusedPastAttention(
            x, score, *cache, *w, weight(f"bo{layer}", WIDTH), num_heads=HEADS, scale=0.25, _domain="bertc", _outputs=3
        )
        for value, name in zip(made, ("y", "new_k", "new_v"), strict=True):
            dims = ["batch", 1, WIDTH] if name == "y" else ["batch", HEADS, "places", SIZE]
            value.name, value.shape, value.dtype = f"{name}{layer}", ir.Shape(dims), ir.DataType.FLOAT
        op.nodes[-1].name = f"step{layer}"
        inputs, outputs, x = [*inputs, *cache], [*outputs, *made[1:]], made[0]
    op.nodes[0].name = "mask"
    opsets = {"": 20, "bertc": 1}
    graph = ir.Graph(inputs, [x, *outputs], nodes=op.nodes, initializers=op.initializers, opset_imports=opsets, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def test_a_layer_is_a_product_an_attention_with_its_cache_and_a_product(tmp_path: Path) -> None:
    lowered = _trt_graph.tidy(canonical.expand(step(), _lower_trt.lowerings(("sm89",))))
    typed = precision.get("fp16").apply(lowered).graph
    save_graph(typed, tmp_path / "graph.onnx")
    ranges = {"batch": Range(1, 2, 4), "past": Range(1, 32, 64), "places": Range(2, 33, 65)}
    built = tensorrt_rtx.build(BuildRequest(typed, tmp_path / "graph.onnx", tmp_path, "fp16", ("sm89",), (ranges,)))
    names = [row["name"] for row in built.facts["kernels"]["rows"]]
    assert sum("_gemv_mha_v1" in name for name in names) == 2
    assert not [name for name in names if "_Move_" in name], "the projection is copied apart"
