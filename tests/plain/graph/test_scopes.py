"""Graphs inside graphs survive what is done to a graph: what a branch gives back is made in it."""

from __future__ import annotations

import control_flow
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from bertc.graph import normalization, opset, scopes
from bertc.graph.model import Graph

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def ran(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    upgraded = opset.upgrade_opset(Graph(ir.from_proto(model))).graph
    return ir.to_proto(normalization.normalize(upgraded).model)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)


CASES = {
    "a branch hands a value of the outside on": """
        g (float[B,4] x, bool flag) => (float[B,4] y) {
          a = Relu (x)
          y = If (flag) <then_branch = t () => (float[B,4] p) { p = Identity (a) },
                         else_branch = e () => (float[B,4] q) { n = Neg (a) q = Identity (n) }> }""",
    "an If in an If, of the rank and of the size": """
        g (float[B,4] x, bool flag) => (float[B,4] y) <int64 two = {2}, int64 one = {1}> {
          a = Relu (x) s = Shape (x) r = Size (s) c = Equal (r, two)
          y = If (c) <then_branch = t () => (float[B,4] p) {
                         z = Constant <value = int64 {0}> () d = Gather (s, z) k = Equal (d, one)
                         p = If (k) <then_branch = t2 () => (float[B,4] p2) { p2 = Identity (a) },
                                     else_branch = e2 () => (float[B,4] q2) { q2 = Identity (x) }> },
                       else_branch = e () => (float[B,4] q) { q = Identity (a) }> }""",
    "both branches use the same names": """
        g (float[B,4] x, bool flag) => (float[B,4] y) <bool yes = {1}, bool no = {0}> {
          a = If (yes) <then_branch = t () => (float[B,4] p) { m = Relu (x) p = Neg (m) },
                        else_branch = e () => (float[B,4] p) { m = Abs (x) p = Neg (m) }>
          b = If (no) <then_branch = t () => (float[B,4] p) { m = Relu (x) p = Neg (m) },
                       else_branch = e () => (float[B,4] p) { m = Abs (x) p = Neg (m) }>
          y = Add (a, b) }""",
    "two transposes, one in the branch": """
        g (float[B,4] x, bool flag) => (float[B,4] y) {
          a = Transpose <perm = [1, 0]> (x)
          y = If (flag) <then_branch = t () => (float[B,4] p) { p = Transpose <perm = [1, 0]> (a) },
                         else_branch = e () => (float[B,4] q) { q = Identity (x) }> }""",
    "one value is two outputs": """
        g (float[B,4] x, bool flag) => (float[B,4] y, float[B,4] z, float[B,4] w) {
          y = Relu (x) z = Identity (y) w = Identity (x) }""",
    "a loop keeps its state": """
        g (float[B,4] x, bool flag) => (float[B,4] y) <int64 three = {3}> {
          y = Loop (three, flag, x) <body = b (int64 i, bool go, float[B,4] s) => (bool again, float[B,4] out) {
              again = Identity (go) out = Identity (s) }> }""",
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_branch_gives_back_is_made_in_it(case: str) -> None:
    model = onnx.parser.parse_model(HEAD + CASES[case])
    made = normalized(model)
    for feeds in control_flow.feeds():
        fed = feeds if any(value.name == "flag" for value in made.graph.input) else {"x": feeds["x"]}
        same(ran(made, fed), ran(model, fed))


def test_an_identity_that_nothing_needs_goes() -> None:
    text = "g (float[B,4] x) => (float[B,4] y) { a = Identity (x) b = Relu (a) y = Identity (b) }"
    model = ir.from_onnx_text(HEAD + text)
    assert scopes.eliminate_identities(model)
    assert [node.op_type for node in model.graph] == ["Relu"] and model.graph.outputs[0].name == "y"
    assert not scopes.eliminate_identities(model)


def test_names_in_two_branches_are_told_apart() -> None:
    model = ir.from_onnx_text(HEAD + CASES["both branches use the same names"])
    scopes.name_apart(model)
    names = [value.name for node in model.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "flag", "y"]


@pytest.mark.parametrize("version", [12, 16, 20])
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_inside_graphs(seed: int, version: int) -> None:
    model = control_flow.random_graph(seed, version)
    made = normalized(model)
    for feeds in control_flow.feeds():
        same(ran(made, feeds), ran(model, feeds))
