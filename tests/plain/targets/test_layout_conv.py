"""Layouts behind a convolution, in the graph TensorRT gets: turned once, length-first from there on, with the same numbers."""

from __future__ import annotations

import numpy as np
from rules import parse

from bertc.runtime.reference import ReferenceRunner
from bertc.targets._tensorrt import layout as _trt_graph

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, 2, T] x) => (float[B, U, 3] y)
<float[2, 2, 3] w = {1, -2, 3, -4, 5, -6, 6, 5, -4, 3, 2, -1}, float[2] gamma = {1, 2}, float[2] beta = {0.5, -0.5},
 float[2, 3] m = {1, 2, 3, -4, 5, 6}>
{
  c = Conv(x, w)
  t = Transpose <perm = [0, 2, 1]> (c)
  n = LayerNormalization(t, gamma, beta)
  s = Transpose <perm = [1, 0, 2]> (n)
  p = MatMul(s, m)
  y = Transpose <perm = [1, 0, 2]> (p)
}"""


def test_what_a_convolution_made_is_turned_once() -> None:
    graph = parse(TEXT)
    tidied = _trt_graph.tidy(graph)
    perms = [tuple(n.attributes["perm"].as_ints()) for n in tidied.model.graph if n.op_type == "Transpose"]
    assert perms == [(2, 0, 1), (1, 0, 2)], "to length-first behind the convolution, and back at the output"
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 2, 9)).astype(np.float32)}
    np.testing.assert_array_equal(ReferenceRunner(tidied).run(feeds)["y"], ReferenceRunner(graph).run(feeds)["y"])


def test_what_goes_into_a_convolution_stays_as_it_is() -> None:
    graph = parse(
        TEXT.replace(
            "c = Conv(x, w)", "u = Transpose <perm = [0, 2, 1]> (x)\n  v = Transpose <perm = [0, 2, 1]> (u)\n  c = Conv(v, w)"
        )
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 2, 9)).astype(np.float32)}
    found = ReferenceRunner(_trt_graph.tidy(graph)).run(feeds)["y"]
    np.testing.assert_array_equal(found, ReferenceRunner(graph).run(feeds)["y"])
