"""The model built to overflow, compiled: only its islands, and what hands a value to one, write float32. And what that costs."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import overflowing
import pytest
from graph_text import graph_of

import bertc
from bertc import precision
from bertc.core.profiles import Range
from bertc.data.samples import Sample
from bertc.graph.model import Graph, save_graph
from bertc.precision._islands import TIED
from bertc.precision._value_ranges import Evidence
from bertc.targets import BuildRequest, tensorrt_rtx

CASES = [(False, 6, {"Half": 16, "Float": 6}), (True, 10, {"Half": 17, "Float": 5})]


def handing_on(graph: Graph, islands: set[str]) -> set[str]:
    """The nodes whose values islands read, in float32: the kernel of such a node may cast what it writes."""
    makers = [
        value.producer() for node in graph.model.graph if node.name in islands for value in node.inputs if value is not None
    ]
    behind = [maker.inputs[0].producer() for maker in makers if maker is not None and maker.op_type == "Cast"]
    return {str(maker.name) for maker in behind if maker is not None}


@pytest.mark.parametrize(("pre_norm", "demanded", "types"), CASES, ids=["post-norm", "pre-norm"])
def test_the_kernels_of_the_rest_are_half(pre_norm: bool, demanded: int, types: dict[str, int], tmp_path: Path) -> None:
    """The build verifies it within its budget on every kind of mask, a row without a token included; else it raises."""
    source = overflowing.encoder(tmp_path / "model.onnx", pre_norm=pre_norm)
    (made,) = bertc.build(source, tmp_path / "out", targets=["tensorrt-rtx:sm89=fp16"])
    listed, engine = made.manifest["precision"]["islands"], made.manifest["engine"]
    assert sum(island["by"] == "data" for island in listed) == demanded
    assert engine["gemms"] == {"total": 17, "half": 15}
    islands = {island["node"] for island in listed}
    rows = engine["kernels"]["rows"]
    floats = [row for row in rows if row["dtype"] == "Float"]
    before = handing_on(made.graph(), islands)
    assert all((islands | before) & set(row["onnx_nodes"]) for row in floats), floats
    assert sum(not islands & set(row["onnx_nodes"]) for row in floats) == 1, "the kernel before the first product in float32"
    assert collections.Counter(row["dtype"] for row in rows) == types


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_in_int8_every_product_reads_int8_also_those_that_float32_is_demanded_of(pre_norm: bool, tmp_path: Path) -> None:
    """One overflows float16, and behind it scales are too small for it: both operands then have their scales in float32."""
    source, data = overflowing.encoder(tmp_path / "model.onnx", pre_norm=pre_norm), tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, overflowing.WORDS, (8, 16)) for _ in range(16)]
    np.savez(data, **{f"{n}/{name}": each for n, ids in enumerate(batches) for name, each in feeds(ids).items()})
    (made,) = bertc.build(source, tmp_path / "out", targets=["tensorrt-rtx:sm89=int8-static"], data=data)
    listed, products = made.manifest["precision"]["islands"], overflowing.LAYERS * 6  # q, k and v are one
    full = [island for island in listed if island["op"] == "MatMul"]
    gemms = {"total": products + 1, "half": products + 1 - len(full), "asked": products, "int8": products}
    assert made.manifest["engine"]["gemms"] == gemms
    assert {island["op"] for island in listed if island["reason"] == TIED.reason} == {"DequantizeLinear", "MatMul"}
    assert [island["by"] for island in full].count("data") == 2, "the one that overflows and the logits"


def feeds(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def kernels(graph: Graph, folder: Path, evidence: Evidence | None) -> tuple[int, dict[str, Any]]:
    typed = precision.get("fp16").apply(graph, evidence)
    folder.mkdir()
    save_graph(typed.graph, folder / "graph.onnx")
    sizes = {"B": Range(1, 8, 32), "S": Range(1, 64, 256)}
    built = tensorrt_rtx.build(BuildRequest(typed.graph, folder / "graph.onnx", folder, "fp16", ("sm89",), (sizes,)))
    return built.facts["kernels"]["count"], typed.plan.reasons()


def test_a_function_whose_values_fit_costs_no_kernel(tmp_path: Path) -> None:
    """GELU in its tanh form, decomposed: its Pow in float32 keeps it from being fused into the projection before it."""
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((64, 128)) / 5, "w1": rng.standard_normal((128, 64)) / 5, "b": rng.standard_normal(128)}
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,S,64] x) => (float[B,S,64] y)
        <float[64,128] w0, float[128,64] w1, float[128] b, float three = {3.0}, float c = {0.044715}, float k = {0.7978846},
         float one = {1.0}, float half = {0.5}>
        { m = MatMul (x, w0) z = Add (m, b) p = Pow (z, three) q = Mul (p, c) r = Add (z, q) s = Mul (r, k) t = Tanh (s)
          u = Add (t, one) v = Mul (z, half) a = Mul (v, u) y = MatMul (a, w1) }""",
        **{name: array.astype(np.float32) for name, array in weights.items()},
    )
    seen = Evidence([Sample("one", {"x": rng.standard_normal((2, 8, 64)).astype(np.float32)})], "1 sample")
    without, reasons = kernels(source, tmp_path / "without", None)
    measured, none = kernels(source, tmp_path / "measured", seen)
    assert reasons and not none
    assert measured == without - 1
