"""Islands around quantisation: nodes are typed by their scales, and what leads from a float32 norm to its quantiser is half."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graph_text import node, valid
from island_graphs import evidence, graph, islands, row

from bertc import precision
from bertc.graph.model import Graph
from bertc.precision._islands import TIED
from bertc.runtime.reference import ReferenceRunner

FULL, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

QUANTISED = """q = QuantizeLinear (x, sx, zero) dq = DequantizeLinear (q, sx, zero) w = DequantizeLinear <axis = 1> (wq, sw)
y = MatMul (dq, w)"""


def quantised(scale: float) -> Graph:
    declared = f"float sx = {{{scale}}}, int8 zero = {{0}}, float[4] sw = {{0.5, 0.25, 0.125, 1.0}}, int8[4,4] wq"
    return graph(QUANTISED, declared=declared, wq=np.eye(4, dtype=np.int8))


def test_quantised_nodes_are_typed_by_their_scales() -> None:
    typed = precision.get("fp16").apply(quantised(0.5), evidence(row(1, 2, 3, 4)))
    valid(typed.graph)
    assert not typed.plan.islands
    half, kept = ir.DataType.FLOAT16, ir.DataType.INT8
    for each in typed.graph.model.graph:
        if each.op_type == "QuantizeLinear":
            assert [v.dtype for v in (*each.inputs, *each.outputs) if v] == [half, half, kept, kept]
        if each.op_type == "DequantizeLinear":
            assert each.inputs[0].dtype == kept and each.inputs[1].dtype == each.outputs[0].dtype == half
    assert {v.dtype for v in node(typed.graph, "y").inputs} == {half}
    got, exact = (ReferenceRunner(g).run(row(1, 2, 3, 4))["y"] for g in (typed.graph, quantised(0.5)))
    np.testing.assert_array_equal(got, exact)


def test_a_scale_that_is_too_small_for_the_type_stays_in_float32_and_with_it_its_gemm() -> None:
    source = quantised(1e-6)
    typed = precision.get("fp16").apply(source)
    valid(typed.graph)
    found = islands(typed, "constant")
    assert found.keys() == {"QuantizeLinear", "DequantizeLinear"}
    assert "scale 1e-06 is too small for fp16" in found["QuantizeLinear"]
    assert islands(typed, "type") == {"MatMul": TIED.reason, "DequantizeLinear": TIED.reason}
    require_units(typed.graph, {"y.fp16": FULL})
    feeds = row(1e-4, 2e-5, 1e-4, 0)
    got, exact = (ReferenceRunner(g).run(feeds)["y"] for g in (typed.graph, source))
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=0)


def require_units(typed: Graph, wanted: dict[str, ir.DataType]) -> None:
    """Each quantised GEMM {its output: the type it computes in} reads both operands from their DequantizeLinear, in one type."""
    found = {}
    for each in (n for n in typed.model.graph if n.op_type == "MatMul"):
        makers = [value.producer() for value in each.inputs if value is not None]
        assert [maker.op_type for maker in makers if maker] == ["DequantizeLinear"] * 2
        (found[str(each.outputs[0].name).removesuffix(".fp16")],) = {value.dtype for value in each.inputs if value is not None}
    assert found == {name.removesuffix(".fp16"): dtype for name, dtype in wanted.items()}


TWO = """q = QuantizeLinear (x, sx, zero) dq = DequantizeLinear (q, sx, zero) w = DequantizeLinear <axis = 1> (wq, sw)
v = DequantizeLinear (vq, sv) a = MatMul (dq, w) b = MatMul (dq, v) r = QuantizeLinear (a, sa, zero)
dr = DequantizeLinear (r, sa, zero) u = DequantizeLinear (vq, su) y = MatMul (dr, u)"""


def test_gemms_that_read_one_operand_have_one_type_and_the_next_ones_their_own() -> None:
    """`v` has a scale that float16 has not; `b` reads it and the operand that `a` reads too; `y` reads what `a` made."""
    scales = "float sx = {0.5}, float sa = {0.5}, float sv = {0.0000001}, float su = {0.5}, float[4] sw = {0.5, 0.25, 0.125, 1.0}"
    declared = f"{scales}, int8 zero = {{0}}, int8[4,4] wq, int8[4,4] vq"
    eye = np.eye(4, dtype=np.int8)
    source = graph(TWO, output="float[B,4] y, float[B,4] b", declared=declared, wq=eye, vq=eye)
    typed = precision.get("fp16").apply(source, evidence(row(1, 2, 3, 4)))
    valid(typed.graph)
    require_units(typed.graph, {"a": FULL, "b": FULL, "y": HALF})
    tied = [island.op for island in typed.plan.islands if island.reason == TIED.reason]
    assert sorted(tied) == ["DequantizeLinear", "DequantizeLinear", "MatMul"], "`dq`, `w` and `a`; what `b` makes would vanish"
    got, exact = (ReferenceRunner(g).run(row(1, 2, 3, 4)) for g in (typed.graph, source))
    for name in ("y", "b"):
        np.testing.assert_allclose(got[name], exact[name], rtol=1e-3)


def test_a_gemm_of_which_only_the_weights_are_quantised_is_half_whatever_their_scale_is() -> None:
    declared = "float[4] sw = {0.5, 0.25, 0.125, 0.0000001}, int8[4,4] wq"
    source = graph("w = DequantizeLinear <axis = 1> (wq, sw) y = MatMul (x, w)", declared=declared, wq=np.eye(4, dtype=np.int8))
    typed = precision.get("fp16").apply(source)
    valid(typed.graph)
    assert {island.op for island in typed.plan.islands} == {"DequantizeLinear"}
    assert {v.dtype for v in node(typed.graph, "y").inputs} == {HALF}


def test_a_quantised_value_past_the_range_is_read_in_float32() -> None:
    typed = precision.get("fp16").apply(quantised(1000.0), evidence(row(1e5, 2e4, 3, 4)))
    valid(typed.graph)
    assert set(islands(typed)) == {"QuantizeLinear", "DequantizeLinear", "MatMul"}
    require_units(typed.graph, {"y": FULL})
    y = ReferenceRunner(typed.graph).run(row(1e5, 2e4, 3, 4))["y"]
    np.testing.assert_allclose(y[0, :2], [5e4, 5e3])


SMOOTHED = """n = LayerNormalization <axis = -1> (x, gain, shift) m = Mul (n, {}) a = Add (m, offset)
q = QuantizeLinear (a, sx, zero) dq = DequantizeLinear (q, sx, zero) w = DequantizeLinear <axis = 1> (wq, sw)
"""
RESIDUAL, ALONE = "p = MatMul (dq, w) y = Add (p, n)", "p = MatMul (dq, w) y = Add (p, x)"


def smoothed(
    end: str = RESIDUAL, by: str = "factor", more: str = "", *, factor: float = 0.5, offset: float = 0.25, gain: float = 1.0,
    scale: float = 0.5,
) -> Graph:  # fmt: skip
    """A norm, a scale and a shift for each channel, and a product in int8; the residual reads the norm, or x."""
    vectors = "float[4] gain, float[4] shift, float[4] factor, float[4] offset"
    scales = f"float sx = {{{scale}}}, int8 zero = {{0}}, float[4] sw = {{0.5, 0.25, 0.125, 1.0}}, int8[4,4] wq"
    given = {"gain": gain, "shift": 0.125, "factor": factor, "offset": offset}
    arrays = {name: np.full(4, value, np.float32) for name, value in given.items()}
    body, outputs = SMOOTHED.format(by) + end, f"float[B,4] y{more}"
    return graph(body, output=outputs, declared=f"{vectors}, {scales}", wq=np.eye(4, dtype=np.int8), **arrays)


def reading(typed: precision.Typed) -> dict[str, ir.DataType]:
    """What the scale, the shift and the quantiser behind them read."""
    valid(typed.graph)
    read = {n.op_type: n.inputs[0].dtype for n in typed.graph.model.graph if n.name in ("Mul_1", "Add_2", "QuantizeLinear_3")}
    assert len(read) == 3
    return read


def test_what_scales_a_norm_for_its_quantiser_is_half_where_the_residual_reads_the_norm_in_half() -> None:
    """In float32 the compiler would hand the norm on in float32, for the residual to cast."""
    source, seen = smoothed(), evidence(row(1, 2, 3, 5))
    typed = precision.get("int8").apply(source, seen)
    assert set(reading(typed).values()) == {HALF}
    assert [island.op for island in typed.plan.islands] == ["LayerNormalization"]
    assert [n.inputs[0].name for n in typed.graph.model.graph if n.op_type == "Cast"] == ["n", "y.fp16"]
    got, exact = (ReferenceRunner(g).run(row(1, 2, 3, 5))["y"] for g in (typed.graph, source))
    np.testing.assert_allclose(got, exact, atol=2e-3)


# What keeps both in float32: who reads what; a number that float16 has not; what the data or the scale demands.
KEPT: dict[str, tuple[dict[str, Any], str | None]] = {
    "nobody else reads the norm": ({"end": ALONE}, None),
    "others read the sum": ({"end": f"{RESIDUAL.replace('y', 'r')} y = Add (r, a)"}, None),
    "the sum is an output": ({"more": ", float[B,4] a"}, None),
    "a product of two norms": ({"by": "n"}, None),
    "a factor that half rounds": ({"factor": 0.3}, None),
    "a shift that half rounds": ({"offset": 2.0**-30}, None),
    "the norm is past the range": ({"gain": 3e4}, "data"),
    "its product is past the range": ({"factor": 3e4}, "data"),
    "their sum is past the range": ({"offset": 3e4}, "data"),
    "its product vanishes": ({"factor": 2.0**-20, "offset": 0.0, "gain": 2.0**-4}, "data"),
    "the scale is too small": ({"scale": 1e-6}, "constant"),
}


@pytest.mark.parametrize("why", KEPT)
def test_it_stays_in_float32_where_something_demands_it(why: str) -> None:
    options, by = KEPT[why]
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    typed = precision.get("int8").apply(smoothed(**options), evidence(feeds))
    read = reading(typed)
    assert read["Mul"] == read["Add"] == FULL
    if by is None:
        assert {"Mul", "Add"} <= islands(typed, "free").keys() and not islands(typed)
    else:
        assert islands(typed, by)
