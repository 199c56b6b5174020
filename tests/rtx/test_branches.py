"""Branches and loops that TensorRT-RTX builds no engine of, and the one sentence that is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bertc.core.errors import BuildFailed, InputError
from bertc.core.profiles import Range
from bertc.graph import model as graph_
from bertc.targets import BuildRequest, tensorrt_rtx

pytestmark = pytest.mark.rtx

HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'
NEG = "else_branch = e () => (float[B,4] b) { b = Neg (x) }>"
INNER = (
    "If (d) <then_branch = t2 () => (float[B,4] a2) { a2 = Relu (x) }, else_branch = e2 () => (float[B,4] b2) { b2 = Abs (x) }>"
)
TYPES = "(float[B,4] x, int64 s, int64 u) => (float[B,4] y) { k = Constant <value_int = 7> () c = Equal (s, k)"
ONE = f"g {TYPES} y = If (c) <then_branch = t () => (float[B,4] a) {{ n = Cast <to = 1> (u) a = Mul (x, n) }}, {NEG} }}"
INSIDE = f"g {TYPES} y = If (c) <then_branch = t () => (float[B,4] a) {{ d = Equal (u, k) a = {INNER} }}, {NEG} }}"
BEFORE = f"g {TYPES} d = Equal (u, k) y = If (c) <then_branch = t () => (float[B,4] a) {{ a = {INNER} }}, {NEG} }}"
BY_SIZE = """g (float[B,4] x) => (float[B,4] y) { k = Constant <value_int = 7> () h = Shape <start = 0, end = 1> (x)
  q = Squeeze (h) z = Constant <value_ints = [0]> () c = Equal (q, k) y = If (c) <then_branch = t () => (float[B,4] a) {
    x3 = Unsqueeze (x, z) l, n, m = LSTM <hidden_size = 4> (x3, w, r) a = Squeeze (n, z) },
  else_branch = e () => (float[B,4] b) { b = Neg (x) }> }"""
GRU = f"""g {TYPES} z = Constant <value_ints = [0]> () y = If (c) <then_branch = t () => (float[B,4] a) {{ i = Cast <to = 1> (u)
    v = Mul (x, i) x3 = Unsqueeze (v, z) l, n = GRU <hidden_size = 4> (x3, w, r) a = Squeeze (n, z) }}, {NEG} }}"""
REFUSED = {
    "an If inside": (INSIDE, "'s'"),
    "an If inside, decided before": (BEFORE, "'s'"),
    "an LSTM, decided by a size": (BY_SIZE, "'x'"),
    "a GRU": (GRU, "'s'"),
}


def build(folder: Path, text: str, rows: Range) -> None:
    model = onnx.parser.parse_model(HEADER + text)
    gates = 12 if "GRU" in text else 16
    for name in [name for name in "wr" if f", {name}" in text]:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, gates, 4), 0.1, np.float32), name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.save(model, folder / "graph.onnx")
    graph = graph_.load_graph(folder / "graph.onnx")
    profiles = ({"B": rows},)
    tensorrt_rtx.build(BuildRequest(graph, folder / "graph.onnx", folder, "fp32", ("sm89",), profiles))


def test_one_if_is_built(tmp_path: Path) -> None:
    build(tmp_path, ONE, Range(1, 2, 8))
    assert (tmp_path / "engine.plan").stat().st_size


@pytest.mark.parametrize("case", REFUSED)
def test_no_if_and_no_loop_inside_an_open_branch(case: str, tmp_path: Path) -> None:
    text, decided = REFUSED[case]
    with pytest.raises(InputError) as raised:
        build(tmp_path, text, Range(1, 2, 8))
    said = str(raised.value)
    assert "'node_y'" in said and f"decided by {decided}" in said and "Assertion" not in said
    assert not (tmp_path / "engine.plan").exists()


def test_a_size_that_one_branch_cannot_take_is_explained(tmp_path: Path) -> None:
    """TensorRT plans all branches, whichever way is taken."""
    text = f"""g {TYPES} i = Constant <value_ints = [5]> () e = Constant <value_ints = [99]> () z = Constant <value_ints = [0]> ()
      y = If (c) <then_branch = t () => (float[B,4] a) {{ f = Cast <to = 1> (u) p = Slice (x, i, e, z) q = Gather (p, z)
      r = Mul (q, f) a = Add (x, r) }}, {NEG} }}"""
    with pytest.raises(BuildFailed, match="raise its smallest and best size"):
        build(tmp_path, text, Range(1, 2, 8))
    build(tmp_path, text, Range(6, 6, 8))
