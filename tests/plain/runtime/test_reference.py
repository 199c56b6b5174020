"""The reference must show what float16 does: overflow and rounding that ONNX Runtime CPU hides."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc.graph.model import Graph
from bertc.runtime.reference import ReferenceRunner, emulate_rounding


def typed(text: str) -> Graph:
    proto = onnx.parser.parse_model(text)
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True)))


HEAD = '<ir_version: 10, opset_import: ["" : 20]>'


def test_canary_product_overflows() -> None:
    """300 * 300 / 300 is inf in float16; ONNX Runtime's own answer is 300."""
    graph = typed(
        HEAD
        + """ g (float[N] x) => (float[N] y) <float c32 = {300.0}>
        { c = Cast <to = 10> (c32)
          h = Cast <to = 10> (x)
          p = Mul (h, c)
          q = Div (p, c)
          y = Cast <to = 1> (q) }"""
    )
    assert np.isinf(ReferenceRunner(graph).run({"x": np.array([300.0], np.float32)})["y"]).all()


def test_canary_large_logit_is_not_finite_behind_softmax() -> None:
    graph = typed(
        HEAD
        + """ g (float[1,K] x, float[K,2] w) => (float[1,2] y)
        { xh = Cast <to = 10> (x)
          wh = Cast <to = 10> (w)
          s = MatMul (xh, wh)
          p = Softmax (s)
          y = Cast <to = 1> (p) }"""
    )
    feeds = {"x": np.full((1, 4), 160, np.float32), "w": np.full((4, 2), 160, np.float32)}
    assert not np.isfinite(ReferenceRunner(graph).run(feeds)["y"]).all()


@pytest.mark.parametrize(("code", "dtype"), [(10, np.float16), (16, ml_dtypes.bfloat16)])
def test_every_result_is_rounded_as_numpy_rounds(code: int, dtype: type) -> None:
    name = {10: "float16", 16: "bfloat16"}[code]
    graph = typed(
        HEAD
        + f""" g (float[N] x, float[N] z) => (float[N] y, {name}[N] s)
        {{ a = Cast <to = {code}> (x)
           b = Cast <to = {code}> (z)
           s = Add (a, b)
           m = Mul (s, b)
           y = Cast <to = 1> (m) }}"""
    )
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 1000)).astype(np.float32) * 30
    total = (x.astype(dtype).astype(np.float32) + z.astype(dtype).astype(np.float32)).astype(dtype)
    wanted = (total.astype(np.float32) * z.astype(dtype).astype(np.float32)).astype(dtype).astype(np.float32)
    got = ReferenceRunner(graph).run({"x": x, "z": z})
    np.testing.assert_array_equal(got["y"], wanted)
    np.testing.assert_array_equal(got["s"], total.astype(np.float32))
    assert not np.array_equal(wanted, (x + z) * z), "the test must be able to see rounding"


def test_float32_graph_is_run_as_it_is() -> None:
    graph = typed(HEAD + " g (float[N] x) => (float[N] y) { y = Mul (x, x) }")
    assert emulate_rounding(graph) is graph


def test_emulation_does_not_change_the_typed_graph() -> None:
    graph = typed(HEAD + " g (float16[N] x) => (float16[N] y) { y = Mul (x, x) }")
    before = ir.to_proto(graph.model).SerializeToString()
    emulate_rounding(graph)
    assert ir.to_proto(graph.model).SerializeToString() == before
