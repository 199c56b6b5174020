"""What is refused for its size is refused by what a name means where it stands: a graph inside another has names of its own."""

from __future__ import annotations

from pathlib import Path

import control_flow
import onnx
import pytest

from bertc.graph.growth import check_made


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_inside_graphs_are_read(seed: int, tmp_path: Path) -> None:
    onnx.save(control_flow.random_graph(seed), tmp_path / "in.onnx")
    check_made(onnx.load(tmp_path / "in.onnx"), tmp_path / "in.onnx")


def test_a_count_inside_hides_a_larger_number_of_its_name_outside(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[4] x, bool flag) => (float[4] y) {
       y = If (flag) <then_branch: graph = a () => (float[4] one) {
             n = Constant <value_int = 9000000000>()
             one = Identity(x)
          }, else_branch: graph = b () => (float[4] two) {
             n = Constant <value = int64 {3}>()
             two = Loop (n, "", x) <body: graph = c (int64 i, bool go, float[4] s) => (bool on, float[4] t) {
                on = Identity(go)
                t = Add(s, x)
             }>
          }>
    }"""
    made = onnx.parser.parse_model(text)
    many = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [], [9_000_000_000])
    branch = made.graph.node[0].attribute[0].g
    branch.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("value", many))
    onnx.save(made, tmp_path / "in.onnx")
    check_made(made, tmp_path / "in.onnx")
