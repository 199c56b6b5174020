"""Packed tokens in TensorRT's own parser and compiler, as far as TensorRT-RTX goes: it has no layer that counts tokens.

So the graph is built without that one node, NonZero, whose result becomes an input: everything else of it is compiled.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fused
import onnx
import onnx_ir as ir
import pytest

from bertc import precision
from bertc.core import BuildFailed
from bertc.core.profiles import Range
from bertc.graph.model import Graph, load_graph, save_graph
from bertc.packing import pack
from bertc.targets import BuildRequest, tensorrt, tensorrt_rtx

RANGES = {"batch": Range(1, 8, 32), "length": Range(1, 128, 256), "tokens": Range(1, 256, 8192)}


def build(graph: Graph, folder: Path, mode: str = "fp16") -> dict[str, Any]:
    typed = precision.get(mode).apply(graph).graph
    save_graph(typed, folder / "graph.onnx")
    return dict(tensorrt_rtx.build(BuildRequest(typed, folder / "graph.onnx", folder, mode, ("sm89",), (RANGES,))).facts)


def without_count(lowered: Graph) -> Graph:
    """The places of the tokens as an input."""
    graph = lowered.copy()
    main = graph.model.graph
    (node,) = [node for node in main if node.op_type == "NonZero"]
    found = ir.Value(name="found", shape=ir.Shape([2, "tokens"]), type=ir.TensorType(ir.DataType.INT64))
    kept = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.INT32}, name="kept")
    kept.outputs[0].name, kept.outputs[0].shape = "kept", ir.Shape(["batch", "length"])
    kept.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    node.outputs[0].replace_all_uses_with(found)
    main.insert_after(node, kept)
    main.remove(node, safe=True)
    main.inputs.append(found)
    main.outputs.append(kept.outputs[0])
    return Graph(graph.model)


@pytest.mark.parametrize(("mode", "layer"), [("fp16", 10), ("fp32", 14)])
def test_all_but_the_count_of_tokens_is_compiled(mode: str, layer: int, tmp_path: Path) -> None:
    """Two kernels a layer more than padded in float16: into the padded batch and out of it. Attention stays one kernel."""
    kernels = build(without_count(tensorrt.lower(pack(fused.encoder(layers=4)).graph)), tmp_path, mode)["kernels"]
    assert max(kernels["layers"][1:3]) <= layer
    assert sum(row["name"].startswith("_gemm_mha") for row in kernels["rows"]) == (4 if mode == "fp16" else 0)


def test_turned_heads_and_a_mask_by_position_are_compiled(tmp_path: Path) -> None:
    from benchmarks import golden
    from bertc.fusions import engine

    graph, dims = golden.open_graph(next(golden.FOLDER.glob("modernbert.dynamo*")))
    dims = {name: dataclasses.replace(dim, max=dim.max or 40) for name, dim in dims.items()}
    lowered = tensorrt.lower(pack(engine.fuse(graph, dims, prove=False).graph).graph)
    assert build(without_count(lowered), tmp_path)["kernels"]["count"]


def test_rtx_has_no_count_of_tokens(tmp_path: Path) -> None:
    """What `--packed --target tensorrt-rtx` is refused with."""
    with pytest.raises(BuildFailed, match="NonZero plugin creator version 1 was not found in plugin registry"):
        build(tensorrt.lower(pack(fused.encoder()).graph), tmp_path)


@pytest.mark.parametrize("sm", tensorrt_rtx.SMS)
def test_rtx_has_no_kernel_of_its_own_packed_attention(sm: str, tmp_path: Path) -> None:
    """The parser takes the node and the builder refuses it; where one day it does not, `lower_packed` may write it."""
    names, half = ["q", "k", "v"], onnx.TensorProto.FLOAT16
    inputs = [onnx.helper.make_tensor_value_info(name, half, ["tokens", 4, 32]) for name in names]
    inputs += [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, ["ends"]) for name in ("of_q", "of_k")]
    form = {"query_form": "packed_nhd", "kv_form": "packed_nhd"}
    node = onnx.helper.make_node("TRT_Attention", [*names, "", "of_q", "of_k"], ["y"], name="attention", **form)
    out = onnx.helper.make_tensor_value_info("y", half, ["tokens", 4, 32])
    graph = onnx.helper.make_graph([node], "g", inputs, [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    ranges = ({**RANGES, "ends": Range(2, 9, 33)},)
    request = BuildRequest(load_graph(tmp_path / "g.onnx"), tmp_path / "g.onnx", tmp_path, "fp16", (sm,), ranges)
    with pytest.raises(BuildFailed, match="no fused kernel is available"):
        tensorrt_rtx.build(request)
