"""Tile of what its CUDA kernels do not take: another form of the same, with a kernel."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc.core import BuildFailed
from bertc.graph.model import Graph
from bertc.runtime import ReferenceRunner
from bertc.targets import onnxruntime_cuda
from bertc.targets._onnxruntime_cuda import placement

CAST = ["Cast", "Tile", "Cast"]
TILES: dict[str, tuple[str, str, list[str], tuple[int, ...]]] = {
    "axes of size 1": ("bool[B,S,1] x", "Tile (x, r)", ["Expand"], (1, 1, 4)),
    "an axis of size 2": ("bool[B,2,1] x", "Tile (x, r)", CAST, (1, 2, 4)),
    "an axis of no known size": ("bool[B,S,1] x", "Tile (x, r)", CAST, (2, 1, 1)),
    "none of anything": ("bool[B,1,1] x", "Tile (x, r)", CAST, (1, 0, 1)),
    "small integers": ("int8[B,S,1] x", "Tile (x, r)", CAST, (3, 1, 1)),
}


def graph_of(given: str, body: str) -> Graph:
    kind = given.partition("[")[0]
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({given}, int64[3] r) => ({kind}[A,C,D] y) {{ y = {body} }}'
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("case", TILES)
def test_a_tile_without_a_kernel_becomes_what_has_one(case: str, constant: bool) -> None:
    given, body, wanted, repeats = TILES[case]
    graph, counts = graph_of(given, body), np.array(repeats, np.int64)
    sizes = [2, 2 if "2" in given else 1 if "1,1" in given else 3, 1]
    x = np.random.default_rng(0).integers(0, 2, sizes).astype(bool if given.startswith("bool") else np.int8)
    feeds = {"x": x, "r": counts}
    if constant:
        value = graph.model.graph.inputs[1]
        graph.model.graph.inputs.remove(value)
        value.const_value = ir.tensor(counts, name="r")
        graph.model.graph.register_initializer(value)
        del feeds["r"]
    lowered = onnxruntime_cuda.lower(graph)
    assert [node.op_type for node in lowered.model.graph] == (wanted if constant else CAST)
    (before,), (after,) = (ReferenceRunner(each).run(feeds).values() for each in (graph, lowered))
    assert before.dtype == after.dtype and np.array_equal(before, after)
    placement.require_kernels(lowered)


def test_a_tile_with_a_kernel_stays() -> None:
    graph = graph_of("float[B,S,1] x", "Tile (x, r)")
    assert onnxruntime_cuda.lower(graph) is graph


def test_a_tile_of_what_no_integer_holds_is_named_by_the_check() -> None:
    lowered = onnxruntime_cuda.lower(graph_of("string[B,S,1] x", "Tile (x, r)"))
    with pytest.raises(BuildFailed, match="Tile"):
        placement.require_kernels(lowered)
