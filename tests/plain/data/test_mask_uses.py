"""Masks of integers and flags are known by what the graph does with them, and so is which way round they are."""

from __future__ import annotations

import graph_text
import numpy as np
import pytest

from bertc.core import Dim
from bertc.data.mask_kinds import BINARY, INVERTED, mask_kinds, rows_masked
from bertc.data.synthetic import synthetic_samples

WHOLE = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,S] x, {type}[B,S] qm) => (float[B,{size}] y)
<float low = {{-3.4028234663852886e+38}}, float ten = {{-10000.0}}, float none = {{0.0}}, float one_f = {{1.0}}, 
 float few = {{1e-9}}, int64 zero = {{0}}, int64 one = {{1}}, int64[1] axes = {{1}},
 int64[1] last = {{2}}, float[4,8] table, float[2,8] pair>
{{ {nodes} }}"""
SOFTMAX = "y = Softmax <axis = -1> (s)"
USES = {
    "equal to 0 is hidden": ("int64", f"c = Equal (qm, zero) s = Where (c, low, x) {SOFTMAX}", BINARY),
    "equal to 1 is hidden": ("int64", f"c = Equal (qm, one) s = Where (c, low, x) {SOFTMAX}", INVERTED),
    "key_padding_mask": ("bool", f"s = Where (qm, low, x) {SOFTMAX}", INVERTED),
    "not": ("bool", f"c = Not (qm) s = Where (c, low, x) {SOFTMAX}", BINARY),
    "shown, not hidden": ("bool", f"s = Where (qm, x, low) {SOFTMAX}", BINARY),
    "1 - x times -10000": (
        "int64",
        f"f = Cast <to = 1> (qm) t = Sub (one_f, f) b = Mul (t, ten) v = Exp (x) s = Add (v, b) {SOFTMAX}",
        BINARY,
    ),
    "x times -10000": ("int64", f"f = Cast <to = 1> (qm) b = Mul (f, ten) v = Exp (x) s = Add (v, b) {SOFTMAX}", INVERTED),
    "counted to divide by": (
        "int64",
        "f = Cast <to = 1> (qm) t = Mul (x, f) n = ReduceSum (f, axes) m = Max (n, few) y = Div (t, m)",
        BINARY,
    ),
    "hidden, and looked up in a table of two rows": (
        "int64",
        "e = Gather (pair, qm) w = ReduceSum <keepdims = 0> (e, last) v = Add (x, w) "
        f"c = Equal (qm, zero) s = Where (c, low, v) {SOFTMAX}",
        BINARY,
    ),
    "masked_fill with 0": ("int64", "c = Cast <to = 9> (qm) y = Where (c, x, none)", BINARY),
}


def graph(kind: str, nodes: str, size: str = "S"):
    return graph_text.graph_of(WHOLE.format(type=kind, nodes=nodes, size=size))


@pytest.mark.parametrize("use", list(USES))
def test_a_mask_under_any_name_is_known_by_its_use(use):
    kind, nodes, wanted = USES[use]
    made = graph(kind, nodes)
    assert mask_kinds(made) == {"qm": wanted}
    samples = synthetic_samples(made, {"B": Dim("B"), "S": Dim("S", 1, 24)})
    full = 0 if wanted == INVERTED else 1
    assert all((s.feeds["qm"][0] == full).all() for s in samples if len(s.feeds["qm"]) > 1), "row 0 has no padding"
    (dead,) = [s for s in samples if s.dead_rows]
    assert (dead.feeds["qm"][1] != full).all() and rows_masked(dead.feeds, {"qm": wanted}) == (1,)


@pytest.mark.parametrize(
    "nodes",
    [
        "e = Gather (table, qm) t = Cast <to = 1> (qm) y = Add (x, t)",
        "c = Equal (qm, one) i = Add (qm, qm) f = Cast <to = 1> (i) y = Where (c, f, x)",
        "c = Equal (qm, zero) s = Where (c, low, x) e = Gather (table, qm) y = Softmax <axis = -1> (s)",
    ],
    ids=["ids", "a choice of two values", "ids of which 0 is padding"],
)
def test_what_is_no_mask(nodes):
    assert mask_kinds(graph("int64", nodes)) == {}


def test_uses_that_contradict_each_other_leave_it_a_mask():
    nodes = "c = Equal (qm, zero) a = Where (c, low, x) d = Equal (qm, one) b = Where (d, low, x) y = Add (a, b)"
    assert mask_kinds(graph("int64", nodes)) == {"qm": BINARY}
    samples = synthetic_samples(graph("int64", nodes), {"B": Dim("B"), "S": Dim("S")})
    assert np.unique([s.feeds["qm"].max() for s in samples]) == [1]
