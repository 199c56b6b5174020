"""mask: what the exporter spells is found by running it; what is no padding mask is refused with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rules import captured, fuse, lines, parse, rules

from bertc.core.profiles import Dim
from bertc.fusions.proof.prover import Prover
from bertc.graph.model import Graph
from bertc.graph.normalization import MASK_LOW
from bertc.ops.registry import BODIES

MODULE = rules("mask")
LOWS = [-10000.0, -65504.0, -65504.0]


@pytest.mark.parametrize("text", MODULE.EXAMPLES)
def test_fires_once(text: str) -> None:
    _, after, change = fuse("mask", text)
    assert change.counts() == {"mask": 1}
    assert change.refusals == ()
    assert lines(after)[0].startswith("FusedScoreMask(attention_mask; low=")
    assert after.op_counts() == {"Add": 1, "Softmax": 1, "bertc.FusedScoreMask": 1}


@pytest.mark.parametrize(("text", "reason"), MODULE.NEAR_MISSES)
def test_refuses_with_the_reason(text: str, reason: str) -> None:
    before, after, change = fuse("mask", text)
    assert change.counts() == {}
    assert [reason in refusal.reason for refusal in change.refusals] == [True], change.refusals
    assert lines(after) == lines(before)


@pytest.mark.parametrize(("text", "low"), list(zip(MODULE.EXAMPLES, LOWS, strict=True)))
def test_the_new_node_means_what_the_old_ones_computed(text: str, low: float) -> None:
    before, after, _ = fuse("mask", text)
    node = next(iter(after.model.graph))
    assert node.attributes["low"].value == low
    for shape in ((1, 1), (2, 5), (3, 4)):
        mask = np.random.default_rng(shape[1]).integers(0, 2, shape).astype(before.inputs[0].dtype)
        mask[-1] = 0
        scores = np.zeros((shape[0], 2, shape[1], shape[1]), np.float32)
        made = captured(before, ["m"], {"attention_mask": mask, "scores": scores})["m"]
        wanted = np.where(mask[:, None, None, :] != 0, 0.0, low).astype(np.float32)
        assert np.array_equal(made, np.broadcast_to(wanted, made.shape))


def test_golden() -> None:
    _, after, _ = fuse("mask", MODULE.EXAMPLES[0])
    assert lines(after) == [
        "FusedScoreMask(attention_mask; low=-10000) -> m.score",
        "Add(scores, m.score) -> a",
        "Softmax(a; axis=-1) -> y",
    ]
    assert str(next(iter(after.model.graph)).outputs[0].shape) == "[B,1,1,S]"


def body(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_masks_of_several_layers_become_one_node() -> None:
    second = "m2 = Where(c, zero, inf)\na2 = Add(y1, m2)\ny = Softmax <axis = -1> (a2)"
    text = body(MODULE.EXAMPLES[1], {"y = Softmax <axis = -1> (a)": "y1 = Softmax <axis = -1> (a)\n" + second})
    _, after, change = fuse("mask", text)
    assert change.counts() == {"mask": 1}
    assert [node.op_type for node in after.model.graph] == ["FusedScoreMask", "Add", "Softmax", "Add", "Softmax"]


def test_a_low_of_minus_infinity_becomes_finite() -> None:
    proto = ir.to_proto(parse(MODULE.EXAMPLES[1]).model)
    (low,) = (t for t in proto.graph.initializer if t.name == "inf")
    low.CopyFrom(onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "inf"))
    after, change = MODULE.apply(Graph(ir.from_proto(proto)))
    assert change.counts() == {"mask": 1}
    assert next(iter(after.model.graph)).attributes["low"].value == MASK_LOW


def test_the_mask_in_a_sum_with_a_bias_is_found_and_the_bias_stays() -> None:
    bias = "float[1, 2, 3, 3] bias = {" + ", ".join(str(i / 8) for i in range(18)) + "}, float one"
    text = body(
        MODULE.EXAMPLES[1],
        {"[B, S]": "[B, 3]", "S, S": "3, 3", "float one": bias, "a = Add(scores, m)": "t = Add(bias, m)\na = Add(scores, t)"},
    )
    _, after, change = fuse("mask", text)
    assert change.counts() == {"mask": 1}
    assert lines(after)[:3] == [
        "FusedScoreMask(attention_mask; low=-65504) -> m.score",
        "Add(bias, m.score) -> t",
        "Add(scores, t) -> a",
    ]


def test_a_window_beyond_the_first_lengths_is_seen() -> None:
    text = body(MODULE.NEAR_MISSES[1][0], {"int64 window = {4}": "int64 window = {200}"})
    _, _, change = fuse("mask", text)
    assert change.counts() == {}
    assert "does not attend to 201 of 403" in change.refusals[0].reason


def test_a_constant_beyond_every_length_that_is_tried_is_refused() -> None:
    text = body(MODULE.NEAR_MISSES[1][0], {"int64 window = {4}": "int64 window = {5000}"})
    _, _, change = fuse("mask", text)
    assert change.counts() == {}
    assert "it compares with 5000" in change.refusals[0].reason


def test_the_given_graph_is_not_changed() -> None:
    before, after, _ = fuse("mask", MODULE.EXAMPLES[0])
    assert lines(before) != lines(after)
    assert "FusedScoreMask" not in "".join(lines(before))


@pytest.mark.parametrize("text", [*MODULE.EXAMPLES, MODULE.EXAMPLES[0].replace("int64[B, S]", "float[B, S]")])
def test_a_mask_is_proven_with_what_reads_it(text: str) -> None:
    """By the one proof of all matches: the error is measured, and a target's wrong form is found."""
    graph, dims = parse(text), {"B": Dim("B"), "S": Dim("S", 1, 40)}
    _, change = MODULE.apply(graph, Prover(graph, dims))
    assert [applied.error for applied in change.applied] == [pytest.approx(0, abs=1e-5)]
    table = {"FusedScoreMask": lambda op, node: [op.Neg(BODIES["FusedScoreMask"](op, node)[0])]}
    refused, change = MODULE.apply(graph, Prover(graph, dims, lowerings={"upside-down": table}))
    assert not change.applied and lines(refused) == lines(graph)
    assert any("upside-down's lowering" in r.reason for r in change.refusals), change.refusals
