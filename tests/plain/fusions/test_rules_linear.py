"""The rule `linear`: it fires, it refuses with a reason, and its numbers are those of numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fusing import fused, ops, parsed, run

from bertc.fusions.rules import linear
from bertc.graph.model import Graph

X = np.random.default_rng(0).standard_normal((3, 5, 2)).astype(np.float32)
XT = X[0].T.copy()
W = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
WT = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
B = np.array([1, 2, 3], np.float32)
WANTED = [X @ W, X @ W + B, X @ W + B, X @ WT.T + B, 0.5 * XT.T @ WT.T + 2 * B, 0.5 * X @ WT.T + B]


@pytest.mark.parametrize(("text", "wanted"), list(zip(linear.EXAMPLES, WANTED, strict=True)), ids=range(len(WANTED)))
def test_fires_with_the_numbers_of_numpy(text: str, wanted: np.ndarray) -> None:
    graph, change = fused(parsed(text))
    assert change.counts() == {"linear": 1}
    assert not {"MatMul", "Gemm", "Add"} & set(ops(graph))
    np.testing.assert_allclose(run(graph, {"x": X, "xt": XT, "r": X @ W}), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("text", "reason"), linear.NEAR_MISSES)
def test_refuses_with_the_reason(text: str, reason: str) -> None:
    _, change = fused(parsed(text))
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]


def test_a_refused_bias_stays_an_add() -> None:
    graph, _ = fused(parsed(linear.NEAR_MISSES[0][0]))
    assert ops(graph) == ["FusedLinear", "Add"]


def test_a_weight_is_transposed_when_it_is_read() -> None:
    graph, _ = fused(Graph(ir.from_onnx_text(linear.EXAMPLES[3])))  # not cleaned: folding would transpose so small a weight
    weight = graph.model.graph[0].inputs[1]
    assert isinstance(weight.const_value, ir.LazyTensor)
    np.testing.assert_array_equal(weight.const_value.numpy(), WT.T)


def test_flattened_heads_become_a_reshape() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[B, S, 2, 3] x) => (y)
    <float[6, 2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, int64[2] flat = {-1, 6}, int64[1] two = {2}>
    { f = Reshape(x, flat)
      a = Gemm(f, w)
      s = Shape <end = 2> (x)
      t = Concat <axis = 0> (s, two)
      y = Reshape(a, t) }"""
    graph, change = fused(parsed(text))
    assert change.counts() == {"linear": 1}
    x = np.random.default_rng(1).standard_normal((3, 5, 2, 3)).astype(np.float32)
    w = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 1], [2, 3]], np.float32)
    np.testing.assert_allclose(run(graph, {"x": x}), x.reshape(3, 5, 6) @ w, rtol=1e-5, atol=1e-5)
