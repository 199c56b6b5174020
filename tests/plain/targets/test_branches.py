"""Half precision of a graph whose GEMMs lie in branches: nothing would change, so it is said before the compiler starts."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bertc.core.errors import InputError
from bertc.graph.model import Graph
from bertc.targets._tensorrt.branches import require_half_outside, scope_refusal

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[4,4] x, bool c) => (float[4,4] y) { OUTSIDE z = If (c) <then_branch = t () => (float[4,4] a) { a = MatMul (x, x) },
  else_branch = e () => (float[4,4] b) { INSIDE }> y = Relu (z) }"""
INNER = (
    "b = If (c) <then_branch = t2 () => (float[4,4] p) { p = Neg (x) }, else_branch = e2 () => (float[4,4] q) { q = Abs (x) }>"
)


def made(outside: str = "", inside: str = "b = Neg (x)") -> Graph:
    model = ir.from_onnx_text(TEXT.replace("OUTSIDE", outside).replace("INSIDE", inside))
    for node in model.graph.all_nodes():
        node.name = f"node_{node.outputs[0].name}"
    return Graph(model)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_inside_a_branch_is_refused(precision: str) -> None:
    with pytest.raises(InputError, match=r"1 GEMMs.* If 'node_z'.*build --fp32$"):
        require_half_outside(made(), precision)


def test_the_advice_is_one_that_works() -> None:
    with pytest.raises(InputError, match="--target onnxruntime"):  # this one has no engine in float32 either
        require_half_outside(made(inside=INNER), "fp16")


def test_a_gemm_outside_or_float32_is_enough() -> None:
    require_half_outside(made("w = MatMul (x, x)"), "fp16")
    require_half_outside(made(), "fp32")
    require_half_outside(
        Graph(ir.from_onnx_text('<ir_version: 10, opset_import: ["":20]> g (float[4] x) => (float[4] y) { y = Relu (x) }')),
        "fp16",
    )


def test_an_assertion_about_scopes_is_explained_where_there_is_a_cause() -> None:
    message = "[graphScope.cpp::analyze::463] Error Code 2: Internal Error (Assertion failed)"
    assert "decided by 'c'" in str(scope_refusal(message, made(inside=INNER)))
    assert scope_refusal(message, made()) is None, "another cause, which is not known"
    assert scope_refusal("Error Code 4: out of memory", made(inside=INNER)) is None
