"""fp16 and bf16: what is typed, what stays in float32 and why, and that the numbers hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graph_text import ATTENTION, graph_of, node, valid
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc import precision
from bertc.core.errors import RecipeError
from bertc.runtime.reference import ReferenceRunner

GOLDEN = Path(__file__).parent.parent.parent / "golden"


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_golden_graph(mode: str) -> None:
    typed = precision.get(mode).apply(graph_of(ATTENTION))
    valid(typed.graph)
    model = typed.graph.model
    text = "\n".join(
        f"{', '.join(f'{v.name}:{v.dtype}' for v in n.outputs)} = {n.op_type}({', '.join(str(v.name) for v in n.inputs if v)})"
        for n in model.graph
    )
    path = GOLDEN / f"attention_{mode}.txt"
    if not path.exists():
        path.write_text(text + "\n")
        pytest.fail(f"{path} was missing and has been written: look at it and commit it")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize(("mode", "dtype"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)])
def test_gemms_are_half_and_reductions_are_not(mode: str, dtype: ir.DataType) -> None:
    typed = precision.get(mode).apply(graph_of(ATTENTION))
    for n in typed.graph.model.graph:
        if n.op_type == "MatMul":
            assert {v.dtype for v in (*n.inputs, *n.outputs)} == {dtype}
        if n.op_type in ("Softmax", "LayerNormalization"):
            assert {v.dtype for v in (*n.inputs, *n.outputs)} == {ir.DataType.FLOAT}
    assert typed.plan.reasons() == {"sums in float32": 2}
    assert typed.graph.inputs == graph_of(ATTENTION).inputs
    assert typed.graph.outputs == graph_of(ATTENTION).outputs


def test_source_graph_is_not_changed_and_its_weights_are_not_copied() -> None:
    source = graph_of(ATTENTION)
    before = ir.to_proto(source.model).SerializeToString()
    weight = source.model.graph.initializers["gamma"].const_value
    typed = precision.get("fp16").apply(source)
    assert ir.to_proto(source.model).SerializeToString() == before
    assert typed.graph.model.graph.initializers["gamma"].const_value is weight


def test_mask_constant_is_replaced_by_one_that_a_negative_score_cannot_push_over() -> None:
    typed = precision.get("fp16").apply(graph_of(ATTENTION))
    (clamp,) = typed.plan.clamps
    assert clamp.constant == "low"
    assert clamp.was == pytest.approx(-3.4028e38, rel=1e-4)
    assert np.isfinite(np.float16(clamp.now) + np.float16(-30000))
    value = node(typed.graph, "bias").inputs[2].const_value.numpy()
    assert value.dtype == np.float16
    assert np.isfinite(value).all()


@pytest.mark.parametrize("low", ["-1e9", "-inf", "-3.4028234663852886e+38", "-1e4"])
@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_any_mask_constant_is_finite_and_right(low: str, mode: str) -> None:
    """Masked places get no weight, a row that is all masked is finite and disturbs no other."""
    text = ATTENTION.replace("-3.4028234663852886e+38", "0.0" if low == "-inf" else low)
    source = graph_of(text)
    if low == "-inf":  # ONNX text has no spelling for it
        source.model.graph.initializers["low"].const_value = ir.tensor(np.float32(-np.inf), name="low")
    typed = precision.get(mode).apply(source)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    runner = ReferenceRunner(typed.graph)
    y = runner.run({"x": x, "mask": mask})["y"]
    assert np.isfinite(y).all()
    exact = ReferenceRunner(source).run({"x": x, "mask": mask})["y"]
    np.testing.assert_allclose(y[[0, 2]], exact[[0, 2]], atol=0.1 if mode == "bf16" else 0.01)
    moved = x.copy()
    moved[0, 2] += 3  # a masked place: its key and value must not be seen by the others
    again = runner.run({"x": moved, "mask": mask})["y"]
    np.testing.assert_array_equal(again[0, [0, 1, 3]], y[0, [0, 1, 3]])
    alone = runner.run({"x": x[2:], "mask": mask[2:]})["y"]
    np.testing.assert_array_equal(alone[0], y[2])


def test_constant_that_is_zero_in_the_type_makes_an_island_with_that_reason() -> None:
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y)
        <float[4,4] w, float eps = {1e-12}>
        { a = MatMul (x, w)
          sq = Mul (a, a)
          safe = Add (sq, eps)
          root = Sqrt (safe)
          d = Div (a, root)
          y = MatMul (d, w) }"""
    )
    plan = precision.get("fp16").apply(source).plan
    reasons = {i.op: i.reason for i in plan.islands}
    assert "1e-12 is zero in fp16" in reasons["Add"]
    assert reasons["Div"] == "arithmetic of the island before it"
    y = ReferenceRunner(precision.get("fp16").apply(source).graph).run({"x": np.zeros((1, 4), np.float32)})["y"]
    assert np.isfinite(y).all()


def test_large_constant_that_is_no_mask_stays_in_float32() -> None:
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y) <float big = {70000.0}>
        { y = Mul (x, big) }"""
    )
    typed = precision.get("fp16").apply(source)
    (island,) = typed.plan.islands
    assert "70000" in island.reason
    assert not typed.plan.clamps
    assert ReferenceRunner(typed.graph).run({"x": np.ones((1, 4), np.float32)})["y"].max() == 70000


def test_large_weight_keeps_its_gemm_in_float32() -> None:
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y) <float[4,4] w>
        { y = MatMul (x, w) }""",
        w=np.full((4, 4), 1e5, np.float32),
    )
    (island,) = precision.get("fp16").apply(source).plan.islands
    assert island.op == "MatMul"
    assert not precision.get("bf16").apply(source).plan.islands


def test_counts_are_cast_to_float32_first() -> None:
    """2049 is no float16 number: a token count must not go through it."""
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (int64[B,S] mask) => (float[B,1] y) <int64[1] axes = {1}>
        { f = Cast <to = 1> (mask)
          y = ReduceSum (f, axes) }"""
    )
    y = ReferenceRunner(precision.get("fp16").apply(source).graph).run({"mask": np.ones((1, 2049), np.int64)})["y"]
    assert y[0, 0] == 2049


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_frames_are_counted_right_for_every_length_of_audio(mode: str) -> None:
    """wav2vec 2.0 counts the frames of each row in floats, from samples: 100000 of them are more than float16 has numbers."""
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (int64[B] samples, float[B] x) => (int64[B] frames, float[B] y)
        <int64 kernel = {10}, float stride = {5.0}, int64 one = {1}, float half = {0.5}>
        { s = Sub (samples, kernel)
          f = Cast <to = 1> (s)
          d = Div (f, stride)
          r = Floor (d)
          n = Cast <to = 7> (r)
          frames = Add (n, one)
          y = Mul (x, half) }"""
    )
    samples = np.arange(10, 200_000, 7)
    typed = precision.get(mode).apply(source)
    found = ReferenceRunner(typed.graph).run({"samples": samples, "x": np.ones(len(samples), np.float32)})["frames"]
    np.testing.assert_array_equal(found, (samples - 10) // 5 + 1)
    assert any("it counts" in island.reason for island in typed.plan.islands) and typed.plan.typed_nodes == 1


CONVOLUTION = """<ir_version: 10, opset_import: ["" : OPSET]> g (float[B,4,T] x) => (float[B,4,U] y) <float[4,4,3] w>
    { y = Conv (x, w) }"""


def test_a_convolution_is_typed_bfloat16_at_the_opset_that_allows_it() -> None:
    for opset, wanted in (("20", 22), ("23", 23)):
        source = graph_of(CONVOLUTION.replace("OPSET", opset))
        typed = precision.get("bf16").apply(source)
        assert typed.graph.opset == wanted and source.opset == int(opset)
        assert not typed.plan.islands
        valid(typed.graph)


def test_control_flow_stays_in_float32_and_is_valid() -> None:
    source = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[2,4] x, bool c) => (float[2,4] y) <float[4,4] w>
        { a = MatMul (x, w)
          b = If (c) <then_branch = t () => (float[2,4] u) { u = Add (a, a) },
                      else_branch = e () => (float[2,4] v) { v = Neg (a) }>
          y = MatMul (b, w) }"""
    )
    typed = precision.get("fp16").apply(source)
    valid(typed.graph)
    assert any(i.reason == "control flow" for i in typed.plan.islands)
    x = np.ones((2, 4), np.float32)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        np.testing.assert_allclose(
            ReferenceRunner(typed.graph).run(feeds)["y"], ReferenceRunner(source).run(feeds)["y"], atol=0.1
        )


def test_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'fp16'"):
        precision.get("fp61")


UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Softmax", "Sqrt", "Exp", "Erf", "Gelu", "Identity")


@settings(max_examples=40, deadline=None)
@given(
    ops=st.lists(st.sampled_from([*UNARY, "Add", "Mul", "MatMul"]), min_size=1, max_size=8),
    mode=st.sampled_from(["fp16", "bf16"]),
)
def test_any_chain_of_operators_stays_valid_and_close(ops: list[str], mode: str) -> None:
    lines, last = [], "x"
    for index, op in enumerate(ops):
        name = "y" if index == len(ops) - 1 else f"v{index}"
        operands = f"{last}, w" if op == "MatMul" else (f"{last}, x" if op in ("Add", "Mul") else last)
        source_line = f"{name} = {op} ({operands})" if op != "Sqrt" else f"abs{index} = Abs ({last})\n{name} = Sqrt (abs{index})"
        lines.append(source_line)
        last = name
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2,4] x) => (float[2,4] y) <float[4,4] w> {' + "\n".join(lines) + "}"
    )
    source = graph_of(text)
    typed = precision.get(mode).apply(source)
    valid(typed.graph)
    x = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
    exact, got = ReferenceRunner(source).run({"x": x})["y"], ReferenceRunner(typed.graph).run({"x": x})["y"]
    with np.errstate(over="ignore"):
        comparable = np.isfinite(exact) & (np.abs(exact) < 100)
    np.testing.assert_allclose(got[comparable], exact[comparable], rtol=0.5, atol=1.0)
