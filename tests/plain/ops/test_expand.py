"""The canonical bodies against the numpy references, and a fused graph as a model with functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import relative_error
from onnx.reference import ReferenceEvaluator

from bertc.core.errors import CheckFailed, InputError
from bertc.graph.model import Graph
from bertc.ops import expansion as canonical
from bertc.plugins import (
    attention,
    bias_gelu,
    conv1d_gelu,
    disentangled_attention,
    embeddings,
    linear,
    packed_attention,
    packed_layout,
    remove_padding,
    restore_padding,
    rotary,
    rotary_attention,
    score_mask,
    sdpa,
    skip_layernorm,
    skip_rmsnorm,
)
from bertc.runtime import reference

LOW = -3.4028234663852886e38
FORMS = st.sampled_from(["erf", "tanh", "quick"])
SIZES = st.integers(1, 5)
examples = settings(max_examples=12, deadline=None, derandomize=True)
Arrays = Sequence[np.ndarray | None]


def declared(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))


def single(op: str, arrays: Arrays, attributes: Mapping[str, Any], outputs: int = 1) -> Graph:
    """A graph of one bertc node over inputs x0, x1 ...; None is an absent input."""
    values = [
        None
        if a is None
        else ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.from_numpy(a.dtype)), shape=ir.Shape(a.shape))
        for i, a in enumerate(arrays)
    ]
    node = ir.node(op, values, dict(attributes), domain="bertc", num_outputs=outputs, name="n")
    for index, value in enumerate(node.outputs):
        value.name, value.type = f"y{index}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * 4) if op in ("FusedSdpa", "FusedScoreMask", "FusedRotary") else ir.Shape([None] * 3)
    given_values = [v for v in values if v is not None]
    graph = ir.Graph(given_values, node.outputs, nodes=[node], opset_imports={"": 20, "bertc": 1}, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def agrees(op: str, arrays: Arrays, wanted: np.ndarray | Sequence[np.ndarray], **attributes: Any) -> None:
    """The body, expanded and as a function, on ONNX Runtime, and the function on onnx's evaluator, give what numpy gives."""
    expected = [wanted] if isinstance(wanted, np.ndarray) else list(wanted)
    graph = single(op, arrays, attributes, len(expected))
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    proto = ir.to_proto(canonical.as_functions(graph).model)
    onnx.checker.check_model(proto, full_check=True)
    found = [list(reference.ReferenceRunner(canonical.expand(graph)).run(feeds).values())]
    found.append(list(reference.ReferenceRunner(canonical.as_functions(graph)).run(feeds).values()))
    found.append(ReferenceEvaluator(proto).run(None, feeds))
    for outputs in found:
        for got, want in zip(outputs, expected, strict=True):
            assert got.dtype == want.dtype
            assert relative_error(got.astype(np.float64), want.astype(np.float64)) < 1e-5


class Draw:
    """Float32 normals, or None where `given` says so."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, given: bool = True) -> Any:
        made = self.rng.standard_normal(shape).astype(np.float32)
        return made if given else None


@examples
@given(SIZES, SIZES, SIZES, st.booleans(), st.integers(0, 9))
def test_linear(rows: int, k: int, n: int, bias: bool, seed: int) -> None:
    draw = Draw(seed)
    arrays = draw(2, rows, k), draw(k, n), draw(n, given=bias)
    agrees("FusedLinear", arrays, linear.reference(*arrays))


@examples
@given(SIZES, SIZES, FORMS, st.integers(0, 9))
def test_bias_gelu(rows: int, n: int, form: str, seed: int) -> None:
    draw = Draw(seed)
    arrays = draw(2, rows, n) * 3, draw(n)
    arrays[0][0, 0] = 4  # errors are relative to the peak, and in float32 the tail at -5 has few digits of its own
    agrees("FusedBiasGelu", arrays, bias_gelu.reference(*arrays, form), form=form)


@examples
@given(SIZES, st.integers(2, 6), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1e-12, 1e-2]), st.integers(0, 9))
def test_skip_norms(rows: int, width: int, bias: bool, shift: bool, both: bool, epsilon: float, seed: int) -> None:
    draw = Draw(seed)
    x, skip, b = draw(2, rows, width), draw(2, rows, width), draw(width, given=bias)
    gamma, beta = draw(width), draw(width, given=shift)
    wanted = skip_layernorm.reference(x, skip, b, gamma, beta, epsilon)[: 1 + both]
    agrees("FusedSkipLayerNorm", (x, skip, b, gamma, beta), wanted, epsilon=epsilon)
    wanted = skip_rmsnorm.reference(x, skip, b, gamma, epsilon)[: 1 + both]
    agrees("FusedSkipRmsNorm", (x, skip, b, gamma), wanted, epsilon=epsilon)


@examples
@given(SIZES, st.sampled_from(["none", "given", "batch", "counted"]), st.sampled_from(["none", "given", "zero"]), st.booleans())
def test_embeddings(length: int, positions: str, types: str, shift: bool) -> None:
    draw, batch, width = Draw(length), 2, 6
    ids = draw.rng.integers(0, 9, (batch, length))
    places = draw.rng.integers(0, 7, (batch if positions == "batch" else 1, length))
    kinds = draw.rng.integers(0, 2, (batch, length))
    arrays = (
        ids,
        places if positions in ("given", "batch") else None,
        kinds if types == "given" else None,
        draw(9, width),
        draw(7, width, given=positions != "none"),
        draw(2, width, given=types != "none"),
        draw(width),
        draw(width, given=shift),
    )
    agrees("FusedEmbeddings", arrays, embeddings.reference(*arrays, epsilon=1e-12), epsilon=1e-12)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_, np.float32])
def test_score_mask(dtype: type) -> None:
    mask = np.array([[1, 1, 0], [0, 0, 0]]).astype(dtype)
    agrees("FusedScoreMask", (mask,), score_mask.reference(mask, LOW), low=LOW)


def test_a_score_mask_that_is_not_finite_is_refused() -> None:
    graph = single("FusedScoreMask", (np.ones((1, 2), np.int64),), {"low": -np.inf})
    with pytest.raises(InputError, match="takes a finite number"):
        canonical.expand(graph)


def score(draw: Draw, kind: str, batch: int, heads: int, length: int, width: int) -> Any:
    places = draw.rng.integers(0, 2, (batch, 1, 1, width))
    places[0] = 0  # a row with no place
    places[1:, ..., 0] = 1
    low = np.where(places > 0, 0, LOW).astype(np.float32)
    return {"none": None, "low": low, "bias": draw(1, heads, length, width)}[kind]


@examples
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(["none", "low", "bias"]), st.sampled_from([1.0, 0.3]))
def test_sdpa(heads: int, size: int, length: int, width: int, kind: str, scale: float) -> None:
    draw = Draw(heads)
    mask = score(draw, kind, 2, heads, length, width)
    arrays = draw(2, heads, length, size), draw(2, heads, size, width), draw(2, heads, width, size), mask
    agrees("FusedSdpa", arrays, sdpa.reference(*arrays, scale=scale), scale=scale)


@examples
@given(SIZES, SIZES, SIZES, st.sampled_from(["none", "low", "bias"]), st.booleans(), st.booleans())
def test_attention(heads: int, size: int, length: int, kind: str, inner: bool, outer: bool) -> None:
    draw, width = Draw(size), heads * size
    mask = score(draw, kind, 2, heads, length, length)
    arrays = draw(2, length, 7), mask, draw(7, 3 * width), draw(3 * width, given=inner), draw(width, 4), draw(4, given=outer)
    wanted = attention.reference(*arrays, num_heads=heads, scale=0.4)
    agrees("FusedAttention", arrays, wanted, num_heads=heads, scale=0.4)


@examples
@given(SIZES, SIZES, SIZES, st.sampled_from([1, 2]))
def test_rotary(heads: int, half: int, length: int, rows: int) -> None:
    draw, size = Draw(half), 2 * half
    arrays = draw(2, heads, length, size), draw(rows, 1, length, size), draw(rows, 1, length, size)
    agrees("FusedRotary", arrays, rotary.reference(*arrays))


@examples
@given(SIZES, SIZES, SIZES, st.sampled_from(["none", "low", "bias"]), st.booleans(), st.booleans())
def test_rotary_attention(heads: int, half: int, length: int, kind: str, inner: bool, outer: bool) -> None:
    draw, size = Draw(half), 2 * half
    width, mask = heads * size, score(draw, kind, 2, heads, length, length)
    angles = draw(1, 1, length, size), draw(1, 1, length, size)
    arrays = (
        draw(2, length, 7),
        mask,
        *angles,
        draw(7, 3 * width),
        draw(3 * width, given=inner),
        draw(width, 4),
        draw(4, given=outer),
    )
    wanted = rotary_attention.reference(*arrays, num_heads=heads, scale=0.4)
    agrees("FusedRotaryAttention", arrays, wanted, num_heads=heads, scale=0.4)


@examples
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(["none", "low", "bias"]), st.booleans(), st.booleans())
def test_disentangled_attention(heads: int, size: int, length: int, rows: int, kind: str, inner: bool, outer: bool) -> None:
    draw, width = Draw(size), heads * size
    mask = score(draw, kind, 2, heads, length, length)
    given_weights = draw(7, 3 * width), draw(3 * width, given=inner), draw(width, 4), draw(4, given=outer)
    places = [draw.rng.integers(0, rows, (1, length, length)) for _ in range(2)]
    positions = draw(heads, rows, size), places[0], draw(heads, rows, size), places[1]
    arrays = draw(2, length, 7), mask, *given_weights, *positions
    wanted = disentangled_attention.reference(*arrays, num_heads=heads, scale=0.4)
    agrees("FusedDisentangledAttention", arrays, wanted, num_heads=heads, scale=0.4)


@examples
@given(st.sampled_from(["none", "group", "layer"]), st.booleans(), st.booleans(), st.sampled_from([1, 2]), SIZES, FORMS)
def test_conv1d_gelu(norm: str, bias: bool, shift: bool, group: int, kernel: int, form: str) -> None:
    draw = Draw(kernel)
    attributes = {"strides": [2], "pads": [1, 0], "dilations": [1], "group": group, "norm": norm, "epsilon": 1e-5, "form": form}
    scaled = norm != "none"
    arrays = (
        draw(2, 4, 11),
        draw(6, 4 // group, kernel),
        draw(6, given=bias),
        draw(6, given=scaled),
        draw(6, given=scaled and shift),
    )
    agrees("FusedConv1dGelu", arrays, conv1d_gelu.reference(*arrays, **attributes), **attributes)  # type: ignore[arg-type]


TWO = """
<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B,4] x, float[4,4] w, float[4] b) => (float[B,4] y)
{
    h = bertc.FusedLinear (x, w, b)
    k = bertc.FusedLinear (h, w)
    m = bertc.FusedBiasGelu <form = "tanh"> (k, b)
    n = bertc.FusedBiasGelu <form = "tanh"> (m, b)
    y = bertc.FusedBiasGelu <form = "erf"> (n, b)
}
"""


def two() -> Graph:
    return Graph(ir.from_proto(onnx.parser.parse_model(TWO)))


def test_variants_are_functions_of_their_own_and_give_the_same() -> None:
    made = canonical.as_functions(two())
    assert sorted(key[1] for key in made.model.functions) == [
        "FusedBiasGelu",
        "FusedBiasGelu_v2",
        "FusedLinear",
        "FusedLinear_v2",
    ]
    proto = ir.to_proto(made.model)
    onnx.checker.check_model(proto, full_check=True)
    draw = Draw(0)
    feeds = {"x": draw(3, 4), "w": draw(4, 4), "b": draw(4)}
    wanted = reference.ReferenceRunner(canonical.expand(two())).run(feeds)["y"]
    assert relative_error(reference.ReferenceRunner(made).run(feeds)["y"], wanted) < 1e-6
    assert relative_error(ReferenceEvaluator(proto).run(None, feeds)[0], wanted) < 1e-6


def test_expanding_names_and_types_every_value_and_keeps_the_given_graph() -> None:
    graph = two()
    made = canonical.expand(graph)
    values = [v for node in made.model.graph for v in node.outputs]
    assert len({v.name for v in values}) == len(values)
    assert all(v.type is not None and v.shape is not None for v in values)
    assert str(values[-1].shape) == "[B,4]" and values[-1].name == "y"
    assert all(node.domain == "" for node in made.model.graph) and "bertc" not in made.model.opset_imports
    assert "bertc.FusedLinear" in graph.op_counts()
    again = canonical.expand(graph)
    assert [v.name for n in again.model.graph for v in n.outputs] == [v.name for v in values]


def test_a_table_comes_before_the_body() -> None:
    table = {"FusedLinear": lambda op, node: [op.Identity(op.MatMul(*node.inputs[:2]))]}
    assert canonical.expand(two(), table).op_counts()["Identity"] == 2


def test_a_lowering_that_hands_an_input_through_is_named() -> None:
    with pytest.raises(CheckFailed, match="must make 1 output of its own"):
        canonical.expand(two(), {"FusedLinear": lambda op, node: [node.inputs[0]]})


def test_an_unknown_operator_and_an_old_opset_are_refused() -> None:
    graph = Graph(ir.from_proto(onnx.parser.parse_model(TWO.replace("FusedLinear (h, w)", "FusedLiner (h, w)"))))
    with pytest.raises(InputError, match=r"did you mean 'FusedLinear'"):
        canonical.expand(graph)
    old = Graph(ir.from_proto(onnx.parser.parse_model(TWO.replace('"" : 20', '"" : 17'))))
    with pytest.raises(InputError, match="opset 17"):
        canonical.expand(old)


@examples
@given(SIZES, st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_packed_layout(rows: int, length: int, from_start: bool, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (rows, length))
    graph = single("FusedPackedLayout", (mask,), {"from_start": int(from_start)}, 4)
    for value in graph.model.graph.outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
    found = reference.ReferenceRunner(canonical.expand(graph)).run({"x0": mask}).values()
    wanted = packed_layout.reference(mask, from_start)
    assert [each.tolist() for each in found] == [each.tolist() for each in wanted]


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
@pytest.mark.parametrize("spread", ["", "positions", "rows"])
def test_padding_is_removed_and_restored(spread: str, rest: tuple[int, ...], from_start: bool) -> None:
    draw, grid = Draw(4), np.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    tokens, _, rows, places = packed_layout.reference(grid, from_start)
    x = draw(1 if spread == "positions" else 3, 1 if spread == "rows" else 4, *rest)
    jobs = [
        ("FusedRemovePadding", remove_padding.reference, x, {"spread": spread}),
        ("FusedRestorePadding", restore_padding.reference, draw(1, len(tokens), *rest), {}),
    ]
    for name, oracle, given_x, attributes in jobs:
        arrays = (given_x, tokens, rows, places, grid)
        graph = single(name, arrays, attributes)
        graph.model.graph.outputs[0].shape = None
        (found,) = reference.ReferenceRunner(canonical.expand(graph)).run({f"x{i}": a for i, a in enumerate(arrays)}).values()
        assert np.array_equal(found, oracle(*arrays, **attributes))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("masked", ["no", "keys", "pairs"])
def test_packed_attention(masked: str, turned: bool) -> None:
    """The body and the lowering for ONNX Runtime against each row by itself."""
    from bertc.targets import onnxruntime

    draw, rows, length, heads, size = Draw(3), 5, 7, 2, 4
    width = heads * size
    lengths = np.array([7, 1, 4, 2, 7])
    grid = (np.arange(length) < lengths[:, None]).astype(np.int64)
    grid[0, 2] = 0
    tokens, ends, *_ = packed_layout.reference(grid, from_start=masked == "pairs")
    mask = {"no": None, "keys": score_mask.reference(grid, -1e4), "pairs": draw(rows, heads, length, length)}[masked]
    angles = [draw(1, 1, length, size), draw(rows, 1, length, size)] if turned else []
    arrays = (draw(1, len(tokens), width), mask, draw(width, 3 * width), draw(3 * width), draw(width, width), draw(width))
    given_arrays = (*arrays, tokens, ends, grid, *angles)
    wanted = packed_attention.reference(*given_arrays, num_heads=heads, scale=0.5)
    graph = single("FusedPackedAttention", given_arrays, {"num_heads": heads, "scale": 0.5})
    for at in (2, 3, 4, 5):  # weights are constants, which the lowering cuts apart
        value = next(v for v in graph.model.graph.inputs if v.name == f"x{at}")
        graph.model.graph.inputs.remove(value)
        value.const_value = ir.tensor(given_arrays[at], name=value.name)
        graph.model.graph.register_initializer(value)
    feeds = {f"x{i}": a for i, a in enumerate(given_arrays) if a is not None and i not in (2, 3, 4, 5)}
    for form in (canonical.expand(graph), onnxruntime.lower(graph)):
        (found,) = reference.ReferenceRunner(form).run(feeds).values()
        assert relative_error(found.astype(np.float64), wanted.astype(np.float64)) < 1e-5
