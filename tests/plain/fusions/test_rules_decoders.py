"""The rules of decoders: past_attention, cross_attention, causal, onnx_attention: they fire, refuse, and are proven."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fusing import parsed, run

from bertc.fusions import rewrite
from bertc.fusions.proof.prover import Prover
from bertc.graph.model import Graph
from bertc.ops import expansion as canonical
from bertc.plugins import causal_mask, cross_attention, past_attention
from bertc.targets._tensorrt import lower_encoder as _lower_trt

RULES = ("past_attention", "cross_attention", "causal", "onnx_attention")
MODULES: dict[str, Any] = {name: importlib.import_module(f"bertc.fusions.rules.{name}") for name in RULES}
LOW = -30000.0


def applied(name: str, text: str) -> tuple[Graph, rewrite.Change]:
    """Every match proven, against TensorRT's lowering too."""
    graph = parsed(text)
    prover = Prover(graph, {}, lowerings={"tensorrt-rtx": _lower_trt.lowerings()})
    return rewrite.apply_rules(graph, [(name, rule) for rule in MODULES[name].RULES], prover)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in RULES for text in MODULES[name].EXAMPLES])
def test_fires_and_is_proven(name: str, text: str) -> None:
    graph, change = applied(name, text)
    assert change.counts() == {name: 1}, [str(r) for r in change.refusals]
    assert MODULES[name].OP in {node.op_type for node in graph.model.graph}


@pytest.mark.parametrize(("name", "text", "reason"), [(name, *miss) for name in RULES for miss in MODULES[name].NEAR_MISSES])
def test_refuses_with_the_reason(name: str, text: str, reason: str) -> None:
    _, change = applied(name, text)
    assert not change.applied
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]


def test_what_a_rule_leaves_without_readers_is_gone() -> None:
    graph, _ = applied("causal", MODULES["causal"].EXAMPLES[0])
    assert [node.op_type for node in graph.model.graph] == ["FusedCausalMask", "Add", "Softmax"]


def test_one_query_needs_no_order() -> None:
    text = MODULES["causal"].EXAMPLES[2].replace("int64[B, S] ids", "int64[B, 1] ids").replace("S, T]", "1, T]")
    graph, change = applied("causal", text)
    assert change.counts() == {"causal": 1}
    assert "FusedScoreMask" in {node.op_type for node in graph.model.graph}


def single(op: str, arrays: list[np.ndarray | None], attributes: dict[str, Any], ranks: list[int]) -> Graph:
    """One node; two-dimensional and one-dimensional floats are weights, the others are inputs."""
    values, weights = [], []
    for index, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        kind, shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        values.append(ir.Value(name=f"x{index}", type=kind, shape=shape))
        if array.ndim < 3 and array.dtype == np.float32:
            values[-1].const_value = ir.tensor(array, name=f"x{index}")
            weights.append(values[-1])
    node = ir.node(op, values, attributes, domain="bertc", num_outputs=len(ranks), name="n")
    for index, (value, rank) in enumerate(zip(node.outputs, ranks, strict=True)):
        value.name, value.type, value.shape = f"y{index}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * rank)
    fed = [v for v in values if v is not None and v not in weights]
    opsets = {"": 20, "bertc": 1}
    return Graph(
        ir.Model(ir.Graph(fed, node.outputs, nodes=[node], initializers=weights, opset_imports=opsets, name="g"), ir_version=10)
    )


def agree(graph: Graph, arrays: list[np.ndarray | None], wanted: np.ndarray) -> None:
    """The body and TensorRT's lowering give what numpy gives."""
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    for table in ({}, _lower_trt.lowerings()):
        got = run(Graph(canonical.expand(graph, table).model), feeds)
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()  # fp32, sums of at most 8 terms


@pytest.mark.parametrize(("biased", "past", "length"), [(True, 5, 1), (False, 3, 2), (True, 1, 3)])
def test_a_step_has_the_numbers_of_numpy(biased: bool, past: int, length: int) -> None:
    rng = np.random.default_rng(past)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    mask = np.where(rng.random((2, 1, length, past + length)) < 0.7, 0, LOW).astype(np.float32)
    mask[..., 0] = 0
    arrays = [draw(2, length, 8), mask, draw(2, 2, past, 4), draw(2, 2, past, 4), draw(8, 24), draw(24) if biased else None]
    arrays += [draw(8, 8), draw(8) if biased else None]
    attributes = {"num_heads": 2, "scale": 0.4}
    wanted = past_attention.reference(*arrays, **attributes)  # type: ignore[arg-type]
    for index in range(3):
        graph = single("FusedPastAttention", arrays, attributes, [3, 4, 4])
        graph.model.graph.outputs[:] = [graph.model.graph.outputs[index]]
        agree(graph, arrays, wanted[index])


@pytest.mark.parametrize("biased", [True, False])
def test_cross_attention_has_the_numbers_of_numpy(biased: bool) -> None:
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    mask = np.where(rng.random((2, 1, 1, 5)) < 0.6, 0, LOW).astype(np.float32)
    mask[..., 0] = 0
    biases = [draw(8), draw(16), draw(6)] if biased else [None, None, None]
    arrays = [draw(2, 3, 8), draw(2, 5, 6), mask, draw(8, 8), biases[0], draw(6, 16), biases[1], draw(8, 6), biases[2]]
    attributes = {"num_heads": 2, "scale": 0.4}
    wanted = cross_attention.reference(*arrays, **attributes)  # type: ignore[arg-type]
    agree(single("FusedCrossAttention", arrays, attributes, [3]), arrays, wanted)


@pytest.mark.parametrize(("masked", "queries"), [(True, None), (True, 2), (False, 4), (True, 1)])
def test_a_causal_mask_has_the_numbers_of_numpy(masked: bool, queries: int | None) -> None:
    mask = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]]) if masked else None
    arrays = [mask, None if queries is None else np.array([queries])]
    wanted = causal_mask.reference(*arrays, low=LOW)
    assert (wanted == 0).any() and (wanted == LOW).any()
    agree(single("FusedCausalMask", arrays, {"low": LOW}, [4]), arrays, wanted)
