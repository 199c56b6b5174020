"""Kernels that TensorRT-RTX makes of wav2vec 2.0's convolutions: the feature encoder in both its forms, projection included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bertc import precision
from bertc.core.profiles import Range
from bertc.graph.model import Graph, save_graph
from bertc.ops import expansion as canonical
from bertc.ops.builder import Body, Builder
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
WIDTH = 32
RANGES = {"batch": Range(1, 4, 8), "samples": Range(720, 32_000, 160_000)}


def feature_encoder(norm: str) -> Graph:
    """Audio [batch, samples] -> [batch, frames, WIDTH]: 7 convolutions, then the norm and the projection of their channels."""
    op, rng = Builder(), np.random.default_rng(0)
    audio = ir.Value(name="audio", shape=ir.Shape(["batch", "samples"]), type=ir.TensorType(ir.DataType.FLOAT))

    def weight(name: str, *shape: int, around: float = 0.0) -> ir.Value:
        array = (around + rng.standard_normal(shape) / 4).astype(np.float32)
        return op.initializer(ir.tensor(array, name=name), name=name)

    def named(value: ir.Value, name: str, *shape: int | str) -> ir.Value:
        value.name, value.shape, value.type = f"{name}.out", ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        op.nodes[-1].name = name
        return value

    axis = op.initializer(ir.tensor(np.array([1]), name="axis"), name="axis")
    x = named(op.Unsqueeze(audio, axis), "channel", "batch", 1, "samples")
    for i, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
        here = norm if i == 0 or norm == "layer" else "none"
        affine = [weight(f"gamma{i}", WIDTH, around=1), weight(f"beta{i}", WIDTH)] if here != "none" else []
        given = (
            x,
            weight(f"w{i}", WIDTH, WIDTH if i else 1, kernel),
            weight(f"b{i}", WIDTH) if norm == "layer" else None,
            *affine,
        )
        x = named(op.FusedConv1dGelu(*given, strides=[stride], norm=here, _domain="bertc"), f"conv{i}", "batch", WIDTH, f"t{i}")
    x = named(op.Transpose(x, perm=[0, 2, 1]), "turn", "batch", "t6", WIDTH)
    x = named(op.LayerNormalization(x, weight("gamma", WIDTH), weight("beta", WIDTH)), "norm", "batch", "t6", WIDTH)
    x = named(op.FusedLinear(x, weight("w", WIDTH, WIDTH), weight("b", WIDTH), _domain="bertc"), "proj", "batch", "t6", WIDTH)
    graph = ir.Graph([audio], [x], nodes=op.nodes, initializers=op.initializers, opset_imports={"": 20, "bertc": 1}, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def kernels(graph: Graph, mode: str, folder: Path, table: dict[str, Body] | None = None) -> int:
    lowered = _trt_graph.tidy(canonical.expand(graph, _lower_trt.LOWERINGS if table is None else table))
    typed = precision.get(mode).apply(lowered).graph
    save_graph(typed, folder / "graph.onnx")
    built = tensorrt_rtx.build(BuildRequest(typed, folder / "graph.onnx", folder, mode, ("sm89",), (RANGES,)))
    return int(built.facts["kernels"]["count"])


# 6 convolutions, the norm of channels and the projection are 8, the first convolution and its norm 2. In half precision the audio
# is cast and padded to channels, and the result is cast back.
@pytest.mark.parametrize(
    ("norm", "mode", "wanted"), [("group", "fp16", 13), ("group", "bf16", 13), ("group", "fp32", 12), ("layer", "fp16", 20)]
)
def test_kernels_of_a_feature_encoder(norm: str, mode: str, wanted: int, tmp_path: Path) -> None:
    assert kernels(feature_encoder(norm), mode, tmp_path) <= wanted


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_lowering_is_cheaper_than_the_canonical_bodies(norm: str, tmp_path: Path) -> None:
    graph = feature_encoder(norm)
    (tmp_path / "bodies").mkdir()
    assert kernels(graph, "fp16", tmp_path) <= kernels(graph, "fp16", tmp_path / "bodies", {}) - 3
