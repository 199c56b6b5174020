"""Clean-up before matching: one spelling of shapes, weights untouched."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from models import run_graph

from bertc.graph import normalization as cleanup
from bertc.graph.model import Graph
from bertc.runtime import reference

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def cleaned(text: str) -> tuple[Graph, Graph]:
    graph = Graph(ir.from_onnx_text(HEAD + text))
    return graph, cleanup.normalize(graph)


CASES: dict[str, tuple[str, list[str]]] = {
    "fill by a mask": (
        """g (float[B, S] x) => (float[B, S] y) <float zero = {0}, float half = {0.5}, bool[B, S] m>
           { m = Greater (x, half)
             i = NonZero (m)
             t = Transpose <perm = [1, 0]> (i)
             s = Shape <start = 0, end = 1> (t)
             u = Expand (zero, s)
             y = ScatterND (x, t, u) }""",
        ["Greater", "Where"],
    ),
    "swap of the last two": (
        """g (float[B, 2, S, 3] x) => (float[B, 2, 3, S] y) <int64[1] m = {-1}, int64[1] n = {-2},
            int64[1] e = {9223372036854775807},
           int64[1] z = {0}>
           { s = Shape (x)
             d = Slice (s, m, e)
             l = Slice (s, n, m)
             b = Slice (s, z, n)
             t = Concat <axis = 0> (m, l, d)
             f = Reshape (x, t)
             w = Transpose <perm = [0, 2, 1]> (f)
             u = Concat <axis = 0> (b, d, l)
             y = Reshape (w, u) }""",
        ["Transpose"],
    ),
    "two transposes": (
        """g (float[B, S, 2, 3] x) => (float[B, 2, 3, S] y)
           { t = Transpose <perm = [0, 2, 1, 3]> (x)
             y = Transpose <perm = [0, 1, 3, 2]> (t) }""",
        ["Transpose"],
    ),
    "what changes nothing": (
        """g (float[B, S, 4] x) => (float[B, S, 4] y) <int64[1] z = {0}, int64[1] e = {4}, int64[1] a = {2}>
           { s = Shape (x)
             r = Reshape (x, s)
             p = Expand (r, s)
             c = Cast <to = 1> (p)
             i = Slice (c, z, e, a)
             y = Neg (i) }""",
        ["Neg"],
    ),
    "a slice that runs backwards": (
        """g (float[4] x) => (float[4] y) <int64[1] a = {3}, int64[1] b = {-9}, int64[1] z = {0}, int64[1] m = {-1}>
           { i = Slice (x, a, b, z, m)
             y = Neg (i) }""",
        ["Slice", "Neg"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_spelling(name: str) -> None:
    text, wanted = CASES[name]
    before, after = cleaned(text)
    assert [node.op_type for node in after.model.graph] == wanted
    shape = [3 if d == "B" else 5 if d == "S" else d for d in before.inputs[0].dims]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run_graph(after, {"x": x})["y"], run_graph(before, {"x": x})["y"])


def test_a_mask_of_minus_infinity_becomes_finite_before_a_softmax_only() -> None:
    text = """g (float[S, S] x, bool[S] keep) => (float[S, S] y{more}) <float zero = {{0}}, float low = {{-inf}}>
    {{ m = Where (keep, zero, low)
      a = Add (x, m)
      y = Softmax (a)
      {body} }}"""
    low = ir.Value(name="low")
    for more, body, expected in (("", "", cleanup.MASK_LOW), (", float[S] z", "z = Exp (m)", -np.inf)):
        model = ir.from_onnx_text(HEAD + text.format(more=more, body=body).replace("-inf", "-3"))
        low = model.graph.initializers["low"]
        low.const_value = ir.tensor(np.array(-np.inf, np.float32), name="low")
        graph = cleanup.normalize(Graph(model))
        where = next(node for node in graph.model.graph if node.op_type == "Where")
        assert float(where.inputs[2].const_value.numpy()) == expected


def test_weights_are_neither_copied_nor_loaded() -> None:
    """A transposed weight stays a promise: nothing reads it while the graph is cleaned."""
    model = ir.from_onnx_text(
        HEAD + "g (float[B, 8] x) => (float[B, 9] y) <float[1] w = {1}> { t = Transpose <perm = [1, 0]> (w)\n y = MatMul (x, t) }"
    )

    def load_it() -> ir.TensorProtocol:
        raise AssertionError("the weight was loaded")

    weight = model.graph.initializers["w"]
    weight.shape = ir.Shape([9, 8])
    weight.const_value = ir.LazyTensor(load_it, dtype=ir.DataType.FLOAT, shape=weight.shape, name="w")
    graph = cleanup.normalize(Graph(model))
    assert [node.op_type for node in graph.model.graph] == ["MatMul"]
    assert graph.model.graph[0].inputs[1].const_value.shape == [8, 9]


def test_equal_weights_are_stored_once() -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((20, 20)).astype(np.float32)
    other = array.copy()
    other[3, 7] += 1  # between the elements that are compared first
    values = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("a", array), ("b", array.copy()), ("c", other))]
    node = ir.node("Concat", values, {"axis": 0})
    model = ir.Model(ir.Graph([], list(node.outputs), nodes=[node], initializers=values, opset_imports={"": 20}), ir_version=10)
    assert cleanup.deduplicate_initializers(model) == 1
    assert [value.name for value in node.inputs] == ["a", "a", "c"]


def test_the_graph_given_and_metadata_stay() -> None:
    model = ir.from_onnx_text(HEAD + CASES["two transposes"][0])
    for node in model.graph:
        node.metadata_props["place"] = "encoder"
    before = str(model)
    graph = cleanup.normalize(Graph(model))
    assert str(model) == before
    assert [node.metadata_props.get("place") for node in graph.model.graph] == ["encoder"]


def test_a_bias_filled_where_nobody_looks_is_a_bias_and_a_mask() -> None:
    """T5's sdpa. A low that does not swallow the bias stays as it is, and so does one read outside of a softmax."""
    text = """g (float[B, 2, S, S] x, float[1, 2, S, S] bias, bool[B, 1, S, S] keep) => (float[B, 2, S, S] y{more})
    <float low = {{{low}}}>
    {{ m = Where (keep, bias, low)
      a = Add (x, m)
      y = Softmax (a)
      {body} }}"""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 2, 3, 3)).astype(np.float32), "keep": rng.random((2, 1, 3, 3)) < 0.6}
    feeds["bias"] = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)
    feeds["keep"][1] = False  # a row that attends to nothing: the softmax of equal numbers
    cases = (("-3.4028235e38", "", "", True), ("-100", "", "", False), ("-1e38", ", float[S] z", "z = Exp (m)", False))
    for low, more, body, split in cases:
        source = Graph(ir.from_onnx_text(HEAD + text.format(low=low, more=more, body=body)))
        graph = cleanup.normalize(source)
        assert (graph.op_counts()["Add"] == 2) == split
        found = [reference.ReferenceRunner(g).run(feeds)["y"] for g in (source, graph)]
        np.testing.assert_array_equal(*found)


FILLS = {  # operator: what it reads, by the number of elements that it makes
    "ConstantOfShape": lambda n: [np.array([n])],
    "Expand": lambda n: [np.ones(1, np.float32), np.array([n])],
    "Tile": lambda n: [np.ones(1, np.float32), np.array([n])],
    "Range": lambda n: [np.array(0), np.array(n), np.array(1)],
    "Pad": lambda n: [np.ones(1, np.float32), np.array([0, n - 1])],
    "Pad with axes": lambda n: [np.ones(1, np.float32), np.array([0, n - 1]), None, np.array([0])],
    "OneHot": lambda n: [np.array([0]), np.array(n), np.array([0, 1], np.float32)],
    "HannWindow": lambda n: [np.array(n)],
    "Sum": lambda n: [np.ones([1] * i + [64] + [1] * (3 - i), np.float32) for i in range(4)],
}


def filled(kind: str, count: int) -> Graph:
    """x plus the sum of what the operator makes of constants."""
    op = kind.partition(" ")[0]
    arrays = FILLS[kind](count)
    inputs = [None if a is None else ir.Value(name=f"c{i}", const_value=ir.tensor(a, name=f"c{i}")) for i, a in enumerate(arrays)]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 4]))
    made = ir.node(op, inputs)
    nodes = [made, ir.node("ReduceSum", made.outputs, {"keepdims": 0})]
    nodes += [ir.node("Cast", nodes[-1].outputs, {"to": ir.DataType.FLOAT})]
    nodes += [ir.node("Add", [x, nodes[-1].outputs[0]])]
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["B", 4])
    weights = [value for value in inputs if value is not None]
    return Graph(ir.Model(ir.Graph([x], [y], nodes=nodes, initializers=weights, opset_imports={"": 20}), ir_version=10))


@pytest.mark.parametrize("kind", FILLS)
def test_what_would_be_large_is_not_folded(kind: str) -> None:
    """Billions of elements, which the check of a file refuses, and millions, which it lets through: none are made."""
    for count in (2_000_000_000, 20_000_000) if kind != "Sum" else (0,):
        graph = filled(kind, count)
        tracemalloc.start()
        try:
            made = cleanup.normalize(graph)
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        finally:
            tracemalloc.stop()
        assert kind.partition(" ")[0] in made.op_counts()


@pytest.mark.parametrize("kind", ["Expand", "Tile", "Range", "Pad", "OneHot"])
def test_what_is_small_is_folded(kind: str) -> None:
    assert set(cleanup.normalize(filled(kind, 10)).op_counts()) == {"Add"}
    assert kind in cleanup.normalize(filled(kind, 2000)).op_counts()
