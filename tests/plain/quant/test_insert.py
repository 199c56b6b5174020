"""Q/DQ pairs as they stand in the graph, against numpy by the operators' specification; and the graph with switches."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import graph_of, valid
from quantising import fake, feeds, fitted, layer, rows, run

from bertc.graph.model import Graph
from bertc.quant.calibration.observe import observe_sites
from bertc.quant.fit import Fitted, fit_sites
from bertc.quant.gated import Gated
from bertc.quant.insert import insert_qdq
from bertc.quant.sites import ATTENTION, GEMM, Site, Sites

HEAD = '<ir_version: 10, opset_import: ["" : 20]> g (float[B,S,32] x, float[B,1,S] mask) => (float[B,S,48] y, float[B,1,S] n)'
# The same product of x and w, its bias (if any) in three places.
FORMS = {
    "no bias": "<float[32,48] w> { y = MatMul (x, w) n = Neg (mask) }",
    "bias added": "<float[32,48] w, float[48] b> { z = MatMul (x, w) y = Add (b, z) n = Neg (mask) }",
    "read twice": "<float[32,48] w, float[48] b> { z = MatMul (x, w) a = Add (z, b) y = Add (a, z) n = Neg (mask) }",
}
FLAT = '<ir_version: 10, opset_import: ["" : 20]> g (float[N,32] x, float[B,1,S] mask) => (float[N,48] y, float[B,1,S] n)'
GEMMS = {
    "gemm": "<float[32,48] w> { y = Gemm (x, w) n = Neg (mask) }",
    "gemm with c": "<float[32,48] w, float[48] b> { y = Gemm (x, w, b) n = Neg (mask) }",
    "gemm transposed": "<float[48,32] w, float[48] b> { y = Gemm <transB = 1> (x, w, b) n = Neg (mask) }",
}


def only(form: str) -> tuple[Graph, Fitted, bool]:
    """(the graph, its one GEMM fitted, whether x is flat). A Gemm on tokens is a site to `insert` though `find` leaves it."""
    flat = form in GEMMS
    graph = graph_of((FLAT + GEMMS[form]) if flat else HEAD + FORMS[form])
    node = next(n for n in graph.model.graph if n.op_type in ("MatMul", "Gemm"))
    sites = Sites((Site(str(node.name), GEMM, (str(node.name),), ("x",), ""),), {}, 1.0)
    data = list(rows(24))
    for row in data if flat else ():
        row.feeds["x"] = row.feeds["x"][0]
    (made,) = fit_sites(graph, sites, observe_sites(graph, sites, iter(data), 24, lambda done, total: None))[0].values()
    return graph, made, flat


@pytest.mark.parametrize("form", [*FORMS, *GEMMS])
def test_the_graph_computes_what_the_pairs_say(form: str) -> None:
    graph, made, flat = only(form)
    quantised = insert_qdq(graph, [made])
    valid(quantised)
    given = feeds(99, 6)
    given["x"] = given["x"][0] if flat else given["x"]
    weights = next(iter(made.weights.values()))
    integers = weights.values.T if "transposed" in form else weights.values
    moved = given["x"] if made.mul is None else given["x"] * made.mul
    moved = moved if made.add is None else moved + made.add
    product = fake(moved, made.scales[0]) @ (integers.astype(np.float32) * weights.scales) + weights.bias
    known = {v.name: v.const_value.numpy() for v in graph.model.graph.initializers.values()}
    b = known.get("b", np.float32(0))
    wanted = product + b + product if form == "read twice" else product + b
    got = run(quantised, given)
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
    plain = run(graph, given)
    assert 1e-4 < np.linalg.norm(got - plain) / np.linalg.norm(plain) < 0.05, "quantised, and close"


@pytest.mark.parametrize("form", [*FORMS, *GEMMS])
def test_weights_are_int8_by_output_channel_and_zero_points_are_zero(form: str) -> None:
    graph, made, _ = only(form)
    quantised = insert_qdq(graph, [made]).model.graph
    (node,) = [n for n in quantised if n.op_type in ("MatMul", "Gemm")]
    activation, weight = (value.producer() for value in node.inputs[:2])
    assert weight.op_type == activation.op_type == "DequantizeLinear"
    assert activation.inputs[0].producer().op_type == "QuantizeLinear"
    stored, scale, zero = (value.const_value.numpy() for value in weight.inputs)
    axis = weight.attributes["axis"].value
    assert stored.dtype == zero.dtype == np.int8
    assert axis == (0 if "transposed" in form else 1)
    assert stored.shape[axis] == len(scale) == len(zero) == 48
    assert not zero.any()
    assert not activation.inputs[2].const_value.numpy().any()
    assert activation.inputs[1].const_value.shape == ()
    assert "w" not in quantised.initializers, "the float weights are gone"
    assert "w" in graph.model.graph.initializers, "and are not taken from the graph that was given"


def test_pairs_stand_in_front_of_the_chosen_gemms_and_nowhere_else() -> None:
    graph, made = layer(), fitted(layer())
    chosen = [each for each in made.values() if each.site.inputs in {("s",), ("context",)}]
    names = {name for each in chosen for name in each.site.nodes}
    quantised = insert_qdq(graph, chosen)
    valid(quantised)
    for node in quantised.model.graph:
        made_by = [v.producer().op_type for v in node.inputs if v is not None and v.producer() is not None]
        if node.op_type == "QuantizeLinear":
            (reader,) = {user.op_type for user, _ in node.outputs[0].uses()}
            assert reader == "DequantizeLinear"
        elif node.op_type != "DequantizeLinear":
            assert ("DequantizeLinear" in made_by) == (node.name in names), node.name
    assert sum(n.op_type == "QuantizeLinear" for n in quantised.model.graph) == 2


def test_gemms_of_one_activation_share_its_pair() -> None:
    made = fitted(layer())
    reads_x = [each for each in made.values() if each.site.inputs == ("x",)]
    quantised = insert_qdq(layer(), reads_x).model.graph
    assert sum(n.op_type == "QuantizeLinear" for n in quantised) == 1
    assert sum(n.op_type == "DequantizeLinear" for n in quantised) == 4


def test_attention_reads_four_quantised_values() -> None:
    graph, made = layer(), fitted(layer())
    (attention,) = [each for each in made.values() if each.site.kind == ATTENTION]
    given = feeds(5, 6)
    values = {name: run(named(graph, name), given, name) for name in ("q", "kt", "v")}
    q, k, v = (
        fake(values[name], scale) for name, scale in zip(("q", "kt", "v"), np.array(attention.scales)[[0, 1, 3]], strict=True)
    )
    scores = np.exp(q @ k - (q @ k).max(-1, keepdims=True))
    context = fake(scores / scores.sum(-1, keepdims=True), attention.scales[2]) @ v
    np.testing.assert_allclose(run(named(insert_qdq(graph, [attention]), "context"), given, "context"), context, atol=2e-5)


def named(graph: Graph, name: str) -> Graph:
    """A copy with one of its values as an output too."""
    copy = graph.copy()
    copy.model.graph.outputs.append(next(v for n in copy.model.graph for v in n.outputs if v.name == name))
    return copy


# The graph with switches


def test_all_switches_off_is_the_float_graph() -> None:
    graph, given = layer(), feeds(3, 6)
    gated = Gated(graph, fitted(graph))
    wanted = run(graph, given)
    np.testing.assert_allclose(gated.run(given, ())["y"], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_each_switch_is_what_insert_makes_of_that_site_and_all_are_all() -> None:
    """`v` goes from a GEMM without a bias straight into attention: its switch must find the sum, not the bare product."""
    graph, given = layer(), feeds(3, 6)
    made = fitted(graph)
    gated = Gated(graph, made)
    assert gated.names == tuple(made)
    plain, found = run(graph, given), []
    for names in [*([name] for name in made), list(made), list(made)[1:3]]:
        got = gated.run(given, names)["y"]
        wanted = unoptimised(insert_qdq(graph, [made[name] for name in names]), given)
        if len(names) == len(made):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())  # a bias is subtracted where one is off
        assert np.abs(got - plain).max() > 1e-3 * np.abs(plain).max(), f"{names} changed nothing"
        found.append(got.tobytes())
    assert len(set(found)) == len(found)


def unoptimised(graph: Graph, given: dict[str, np.ndarray]) -> np.ndarray:
    from bertc.runtime.reference import reference_session

    opened, weights = reference_session(graph)
    return np.asarray(opened.run(["y"], {**weights, **given})[0])


def test_nothing_to_quantise_leaves_the_graph() -> None:
    given = feeds(1, 4)
    np.testing.assert_array_equal(run(insert_qdq(layer(), []), given), run(layer(), given))
