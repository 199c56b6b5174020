"""Kernels that TensorRT-RTX makes of the lowered graph. The build itself checks GEMM types and that no weight was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fused
import numpy as np
import onnx_ir as ir
import pytest

from bertc import precision
from bertc.core.profiles import Range
from bertc.graph.model import Graph, save_graph
from bertc.ops import expansion as canonical
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

RANGES = {"batch": Range(1, 8, 32), "length": Range(1, 128, 256)}


def kernels(graph: Graph, mode: str, folder: Path, sm: str = "sm89") -> dict[str, Any]:
    lowered = _trt_graph.tidy(canonical.expand(graph, _lower_trt.lowerings((sm,))))
    typed = precision.get(mode).apply(lowered).graph
    save_graph(typed, folder / "graph.onnx")
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


@pytest.mark.parametrize(("size", "wanted"), [(13, 8), (26, 8), (9, 9)])
def test_heads_of_odd_size_are_made_wider_or_take_the_packed_form(size: int, wanted: int, tmp_path: Path) -> None:
    """13 becomes 16 and 26 (TinyBERT) 32; 9 would be nearly twice as much work."""
    assert kernels(fused.encoder(layers=4, size=size), "fp16", tmp_path)["layers"][1:3] == [wanted, wanted]


def test_turing_takes_the_packed_form(tmp_path: Path) -> None:
    assert kernels(fused.encoder(layers=4), "fp16", tmp_path, "sm75")["layers"][1:3] == [9, 9]


def with_positions(op: str, layers: int = 4) -> Graph:
    """The encoder with another attention, whose angles or relative positions are inputs of the graph."""
    graph, rng, size = fused.encoder(layers), np.random.default_rng(0), fused.SIZE
    main = graph.model.graph
    shape = ir.Shape([1, 1, "length", size] if op == "FusedRotaryAttention" else [1, "length", "length"])
    kind = ir.TensorType(ir.DataType.FLOAT if op == "FusedRotaryAttention" else ir.DataType.INT64)
    given = [ir.Value(name=name, shape=shape, type=kind) for name in ("first", "second")]
    main.inputs.extend(given)
    for node in [node for node in main if node.op_type == "FusedAttention"]:
        x, mask, *weights = node.inputs
        tables = []
        for name in ("pos_k", "pos_q"):
            array = rng.standard_normal((fused.HEADS, 8, size)).astype(np.float32)
            tables.append(
                ir.Value(name=f"{node.name}.{name}", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
            )
            tables[-1].const_value = ir.tensor(array, name=tables[-1].name)
            main.register_initializer(tables[-1])
        inputs = [x, mask, *given, *weights]
        if op == "FusedDisentangledAttention":
            inputs = [x, mask, *weights, tables[0], given[0], tables[1], given[1]]
        new = ir.Node(
            "bertc", op, inputs, list(node.attributes.values()), name=node.name, metadata_props=dict(node.metadata_props)
        )
        old = node.outputs[0]
        new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = old.name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(main, node, [node], [new], [old], new.outputs)
    return graph


@pytest.mark.parametrize(("op", "wanted"), [("FusedRotaryAttention", 8), ("FusedDisentangledAttention", 10)])
def test_kernels_of_attention_with_positions(op: str, wanted: int, tmp_path: Path) -> None:
    assert kernels(with_positions(op), "fp16", tmp_path)["layers"][1:3] == [wanted, wanted]
