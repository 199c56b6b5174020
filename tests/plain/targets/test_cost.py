"""Kernels, FLOPs and bytes of a graph and a list of kernels, against sums made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fused
import numpy as np
import onnx
import onnx.helper as oh
import onnx_ir as ir
import pytest
import tiny
from onnx import TensorProto, numpy_helper

from bertc.core.profiles import Shape
from bertc.graph import concrete_shapes as shapes
from bertc.graph.model import Graph, load_graph
from bertc.ops import expand
from bertc.targets._onnxruntime_cuda import lower as cuda
from bertc.targets._tensorrt import cost as work

BATCH, LENGTH, WIDTH = 3, 5, tiny.WIDTH
SHAPE = Shape((("batch", BATCH), ("length", LENGTH)))
TOKENS = BATCH * LENGTH
HIDDEN = 4 * TOKENS * WIDTH  # bytes of [batch, length, width] in float32
SCORES = 4 * BATCH * LENGTH * LENGTH
SQUARE = 4 * WIDTH * WIDTH
# Which nodes of tiny.encoder make a kernel. `n_raw` is named twice: the second kernel that names it does not make it.
QKV = ["n_q", "n_k", "n_v", "n_kt"]
KERNELS = [["n_x"], QKV, ["n_raw", "n_scores"], ["n_raw", "n_mask", "n_masked", "n_bias", "n_biased", "n_p", "n_context"]]
KERNELS.append(["n_mixed", "n_sum", "n_last_hidden_state"])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_graph(tiny.encoder(tmp_path_factory.mktemp("work") / "m.onnx"))


def rows(kernels: list[list[str]], layers: list[str]) -> list[dict[str, Any]]:
    return [{"onnx_nodes": nodes, "layer": layer, "profile": 0} for nodes, layer in zip(kernels, layers, strict=True)]


def test_flops_are_two_for_each_multiply_and_add(graph: Graph) -> None:
    found = work.graph_work(graph, None, SHAPE, 0)
    by_hand = 2 * (4 * TOKENS * WIDTH * WIDTH + 2 * BATCH * LENGTH * LENGTH * WIDTH)
    assert [(x.name, x.flops, x.moved) for x in found.layers] == [("outside layers", by_hand, None)]
    assert found.total().flops == by_hand and found.unknown == 0


def test_bytes_are_what_crosses_from_kernel_to_kernel(graph: Graph) -> None:
    found = work.graph_work(graph, rows(KERNELS, ["", "m.layer.0", "m.layer.0", "m.layer.10", "m.layer.2"]), SHAPE, 0)
    ids, mask = 8 * TOKENS, 8 * TOKENS
    embedding = ids + HIDDEN + HIDDEN  # ids and the rows of the table read, x written
    qkv = HIDDEN + 3 * SQUARE + 3 * HIDDEN  # x and three weights read; q, k transposed and v written
    scores = HIDDEN + HIDDEN + SCORES  # q and k transposed read, the scores written
    # The mask: n_bias3 is in no kernel and is looked through.
    attention = mask + SCORES + HIDDEN + HIDDEN  # scores and v read, the context written
    end = HIDDEN + SQUARE + HIDDEN + HIDDEN  # context, wo and x read, the output written
    # A scale, `one`, `low`, gamma of ones and beta of zeros hold one value each, which a builder folds.
    moved = {layer.name: layer.moved for layer in found.layers}
    wanted = {"m.layer.0": qkv + scores, "m.layer.2": end, "m.layer.10": attention, "outside layers": embedding}
    assert moved == wanted
    assert list(moved) == ["m.layer.0", "m.layer.2", "m.layer.10", "outside layers"]
    assert [layer.kernels for layer in found.layers] == [2, 1, 1, 1] and found.total().kernels == 5
    assert found.total().moved == sum(wanted.values()) and found.unknown == 0


def test_one_kernel_for_all_moves_only_inputs_weights_and_outputs(graph: Graph) -> None:
    every = [node.name or "" for node in graph.model.graph]
    found = work.graph_work(graph, rows([every], [""]), SHAPE, 0)
    assert (
        found.total().moved == 2 * 8 * TOKENS + HIDDEN + 4 * SQUARE + HIDDEN
    )  # the inputs, rows of the table, weights, the output


def test_kernels_of_another_profile_are_not_counted(graph: Graph) -> None:
    listed = rows(KERNELS, [""] * 5)
    again = [row | {"profile": 1} for row in listed]
    assert work.graph_work(graph, listed + again, SHAPE, 1).total() == work.graph_work(graph, listed, SHAPE, 0).total()


PACKED = """<ir_version: 10, opset_import: ["": 20]> g (float[batch, length, 16] x) => (float y, float16 z) <float[16, 48] w> {
    packed = MatMul(x, w)
    q, k, v = Split<axis = -1, num_outputs = 3>(packed)
    raw = Sub(q, k)
    small = Cast<to = 10>(v)
    y = Exp(raw)
    z = Exp(small)
}"""


def packed() -> Graph:
    model = onnx.parser.parse_model(PACKED)
    weight = np.random.default_rng(0).normal(size=(WIDTH, 3 * WIDTH)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))


GEMM = HIDDEN + 3 * SQUARE + 3 * HIDDEN  # x and the weight read, the packed buffer written


@pytest.mark.parametrize(
    ("kernels", "wanted"),
    [
        # Each kernel that names the Split takes its own parts out of the buffer: two of them, and one that it casts.
        ([["n_packed"], ["n_q", "n_raw", "n_y"], ["n_q", "n_small", "n_z"]], [GEMM, 3 * HIDDEN, HIDDEN + HIDDEN // 2]),
        # A Split that nobody names is a view.
        ([["n_packed"], ["n_raw", "n_y"], ["n_small", "n_z"]], [GEMM, 3 * HIDDEN, HIDDEN + HIDDEN // 2]),
        # Where the kernel before it may cast as well, the least that it can hand on: v in half.
        ([["n_packed", "n_q", "n_small"], ["n_raw", "n_y"], ["n_small", "n_z"]], [GEMM - HIDDEN // 2, 3 * HIDDEN, HIDDEN]),
        # A kernel that does nothing but the Split reads and writes the parts that others want: q and k, not v.
        ([["n_packed"], ["n_q"], ["n_raw", "n_y"]], [GEMM - HIDDEN, 4 * HIDDEN, 3 * HIDDEN]),
    ],
)
def test_a_kernel_reads_no_more_than_the_parts_it_takes(kernels: list[list[str]], wanted: list[int]) -> None:
    graph = packed()
    if not any("n_z" in names for names in kernels):
        graph.model.graph.outputs.pop()
        graph.model.graph.remove([node for node in graph.model.graph if node.name in ("n_z", "n_small")])
    found = work.graph_work(graph, rows(kernels, [f"m.layer.{at}" for at in range(3)]), SHAPE, 0)
    assert [layer.moved for layer in found.layers[:3]] == wanted


def test_products_of_other_operators(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"], name="conv", group=2),
        oh.make_node("Gemm", ["g", "h"], ["d"], name="gemm", transA=1),
        oh.make_node("Einsum", ["c", "e"], ["f"], name="einsum", equation="bcl,cd->bld"),
    ]
    shapes = {"x": ("batch", 4, "length"), "w": (6, 2, 3), "g": ("length", 7), "h": ("length", 5), "e": (6, 9)}
    values = [oh.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    ends = [oh.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("d", "f")]
    model = Graph(ir.from_proto(oh.make_model(oh.make_graph(nodes, "g", values, ends), opset_imports=[oh.make_opsetid("", 20)])))
    found = work.graph_work(model, None, SHAPE, 0)
    frames = LENGTH - 2
    assert found.total().flops == 2 * (BATCH * 6 * frames * 2 * 3 + 7 * 5 * LENGTH + BATCH * frames * 6 * 9)
    assert found.unknown == 0


def test_a_dim_that_nothing_tells_is_counted_as_unknown() -> None:
    assert shapes.evaluate_dim(ir.SymbolicDim("((((samples//80)) - 3)//2) + 1"), {"samples": 16000}) == 99
    assert shapes.evaluate_dim(ir.SymbolicDim("Min(40, 2*length)"), {"length": 7}) == 14
    assert shapes.evaluate_dim(ir.SymbolicDim("length**2"), {"length": 7}) == 49
    for unknown in ("unk__0", "length +", "open(length)", "length//0"):
        assert shapes.evaluate_dim(ir.SymbolicDim(unknown), {"length": 7}) is None


@pytest.mark.parametrize("quantised", [False, True])
def test_attention_of_com_microsoft_counts_what_its_parts_would(quantised: bool) -> None:
    """Attention projects its input first, MultiHeadAttention does not."""
    source = fused.encoder(layers=12)
    whole = work.graph_work(expand(source), None, SHAPE, 0)
    found = work.graph_work(
        cuda.lower(source, quantised=quantised), None, SHAPE, 0
    )  # without a list of kernels no path is walked
    assert found.total().flops == whole.total().flops > 0 and found.unknown == 0


def test_a_cache_counts_its_keys() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[batch,length,8] q, float[batch,2,7,4] pk, float[batch,2,7,4] pv) => (float[batch,length,8] y)
        { y, k, v = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q, , , , pk, pv) }"""
    graph = Graph(ir.from_proto(onnx.parser.parse_model(text)))
    node = next(iter(graph.model.graph))
    for value in node.outputs[1:]:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 2, 12, 4])
    assert work.graph_work(graph, None, SHAPE, 0).total().flops == 2 * 2 * BATCH * LENGTH * 12 * 8
