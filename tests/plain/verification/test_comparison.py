"""Every metric against numbers computed by hand, or by scipy; every way to fool a comparison."""

import dataclasses
import json
import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bertc.core.errors import DataError, VerifyFailed
from bertc.data.samples import Sample
from bertc.graph.model import Graph
from bertc.verification.budgets import DEFAULT_BUDGETS, Budget, budget_for, find_violations
from bertc.verification.choices import Ties
from bertc.verification.comparison import Comparison
from bertc.verification.decisions import Decision, ctc_collapse


def sample(rows=1, length=1, label="s", dead=(), mask=None, origins=()):
    mask = np.ones((rows, length), np.int64) if mask is None else np.asarray(mask)
    return Sample(label, {"ids": np.zeros(mask.shape, np.int64), "attention_mask": mask}, tuple(dead), tuple(origins))


def compared(expected, got, task="features", name="x", **options):
    expected, got = np.asarray(expected, np.float32), np.asarray(got, np.float32)
    comparison = Comparison(task)
    comparison.add({name: expected}, {name: got}, sample(len(expected) if expected.ndim else 1, **options))
    return comparison.result()


def decided(task, expected, got, **options):
    (decision, *_) = compared(expected, got, task, "logits", **options).decisions
    return decision


def test_numbers_by_hand():
    out = compared([[3.0, 4.0], [0.0, 2.0]], [[3.0, 4.0], [1.0, 2.0]], origins=["t.txt:1", "t.txt:3"]).outputs[0]
    assert (out.max_abs, out.relative, out.vectors, out.nonfinite) == (1.0, 0.25, 2, 0)
    assert out.cosine_min == pytest.approx(2 / math.sqrt(5))
    assert out.cosine_mean == pytest.approx((1 + 2 / math.sqrt(5)) / 2)
    assert out.sqnr_db == pytest.approx(10 * math.log10(29 / 1))
    assert out.worst == out.worst_cosine == "t.txt:3"


def test_relative_error_is_per_sample_and_the_worst_counts():
    comparison = Comparison()
    comparison.add({"x": np.array([[100.0]])}, {"x": np.array([[101.0]])}, sample(label="large"))
    comparison.add({"x": np.array([[0.1]])}, {"x": np.array([[0.15]])}, sample(label="small"))
    out = comparison.result().outputs[0]
    assert (out.max_abs, out.worst) == (1.0, "small, row 0")
    assert out.relative == pytest.approx(0.5)


def of_samples(*pairs):
    comparison = Comparison()
    for index, (expected, got) in enumerate(pairs):
        arrays = (np.array(each, np.float64) for each in (expected, got))
        comparison.add(*({"x": array} for array in arrays), sample(label=str(index)))
    return comparison


def test_a_score_near_zero_has_the_scale_of_half_of_the_samples():
    out = of_samples(([[1e-4]], [[2e-4]]), ([[-2.0]], [[-2.0]]), ([[50.0]], [[50.0]])).result().outputs[0]
    assert (out.relative, out.worst) == (pytest.approx(1e-4 / 2), "0, row 0"), "of the middle one, not of the largest"
    out = of_samples(([[1.0]], [[1.0]]), ([[-2.0]], [[-2.5]]), ([[3.0]], [[3.0]])).result().outputs[0]
    assert (out.relative, out.worst) == (0.25, "1, row 0"), "above the least scale a sample has its own"


def test_a_probability_near_zero_has_the_scale_of_the_largest():
    """What ONNX Runtime's Sigmoid gives for -8.2 with and without its optimisations."""
    near = ([[2.8e-4]], [[2.8e-4 + 6e-8]])
    assert of_samples(near, near, ([[0.4]], [[0.4]])).result().outputs[0].relative == pytest.approx(1.5e-7)
    wide = [[2.8e-4] * 20], [[2.8e-4 + 6e-8] * 20]
    assert of_samples(wide, ([[0.4] * 20], [[0.4] * 20])).result().outputs[0].relative == pytest.approx(1.5e-7)
    logits = of_samples(wide, ([[-0.4] * 20], [[-0.4] * 20])).result().outputs[0]
    assert logits.relative == pytest.approx(6e-8 / 2.8e-4), "a vector has a scale of its own, and this is no probability"


@pytest.mark.parametrize(("end", "judged"), [("Sigmoid (x)", False), ("Softmax (x)", False), ("Relu (x)", True)])
def test_the_noise_of_a_sigmoid_is_none_where_all_are_near_zero(end, judged):
    """A detector that finds nothing in the goldens: ONNX Runtime with and without its optimisations differs by 1.8e-7."""
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[B,20] v) => (float[B,20,1] x) '
    text = f"{head} {{ i = Constant <value_ints = [2]> () x0 = {end.replace('(x)', '(v)')} x = Unsqueeze (x0, i) }}"
    ties = Ties(Graph(ir.from_onnx_text(text)), 1e-5)
    for error, broken in ((1.8e-7, judged), (5e-7, True)):
        comparison = Comparison(ties=ties)
        made = np.full((1, 20, 1), 1e-5)
        comparison.add({"x": made}, {"x": made + error}, sample())
        assert bool(find_violations(comparison.result(), DEFAULT_BUDGETS["fp32"])) is broken


def test_a_wrong_probability_is_wrong_at_any_scale():
    wrong = of_samples(([[2.8e-4]], [[4e-4]]), ([[0.4]], [[0.4]]))
    assert find_violations(wrong.result(), DEFAULT_BUDGETS["fp32"])[0].worst == "0, row 0"


def test_one_sample_is_judged_on_the_scale_of_all():
    one = of_samples(([[2.8e-4]], [[2.8e-4 + 6e-8]]))
    every = of_samples(([[2.8e-4]], [[2.8e-4]]), ([[0.4]], [[0.4]]))
    assert one.result().outputs[0].relative > 1e-4 > 1e-6 > one.result(every.least_scales()).outputs[0].relative


@pytest.mark.parametrize(
    ("expected", "got", "relative", "cosine", "sqnr"),
    [
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0, 1.0, math.inf),
        ([[0.0, 0.0]], [[1.0, 0.0]], math.inf, 0.0, -math.inf),
        ([[1.0, 0.0]], [[0.0, 0.0]], 1.0, 0.0, 0.0),
        ([[1e-30, 0.0]], [[1e-30, 0.0]], 0.0, 1.0, math.inf),
        ([[1.0, 1.0]], [[-1.0, -1.0]], 2.0, -1.0, 10 * math.log10(2 / 8)),
    ],
)
def test_edges_of_division(expected, got, relative, cosine, sqnr):
    out = compared(expected, got).outputs[0]
    assert (out.relative, out.cosine_min, out.sqnr_db) == pytest.approx((relative, cosine, sqnr))


@pytest.mark.parametrize(("shape", "vectors"), [((2, 3), 2), ((2, 5, 3), 10), ((2, 5, 4, 3), 40), ((2,), 2), ((), 1)])
def test_vectors_are_counted_along_the_last_axis(shape, vectors):
    rng = np.random.default_rng(0)
    b = rng.standard_normal(shape)
    a = b + 0.1 * rng.standard_normal(shape)
    out = compared(b, a).outputs[0]
    assert out.vectors == vectors
    assert out.sqnr_db == pytest.approx(10 * np.log10(np.square(b).sum() / np.square(b - a).sum()), rel=1e-4)


def test_cosine_equals_scipy():
    distance = pytest.importorskip("scipy.spatial.distance")
    b, a = np.random.default_rng(1).standard_normal((2, 7, 11, 5)).astype(np.float32)
    out = compared(b, a).outputs[0]
    wanted = [
        1 - distance.cosine(x.astype(float), y.astype(float)) for x, y in zip(a.reshape(-1, 5), b.reshape(-1, 5), strict=True)
    ]
    assert (out.cosine_min, out.cosine_mean) == pytest.approx((min(wanted), np.mean(wanted)))


def test_blocks_do_not_change_the_result(monkeypatch):
    b, a = np.random.default_rng(2).standard_normal((2, 3, 10, 4))
    whole = compared(b, a)
    monkeypatch.setattr("bertc.verification.closeness.BLOCK", 8)
    small, large = (dataclasses.asdict(result.outputs[0]) for result in (compared(b, a), whole))
    words = {key: small.pop(key) for key in ("name", "worst", "worst_cosine")}
    assert words == {key: large.pop(key) for key in words}
    assert small == pytest.approx(large)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("budget", [Budget(), *DEFAULT_BUDGETS.values()])
def test_values_that_are_not_finite_break_any_budget(bad, budget):
    result = compared([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, bad]])
    out = result.outputs[0]
    assert (out.relative, out.max_abs, out.cosine_min, out.sqnr_db, out.nonfinite) == (math.inf, math.inf, -1.0, -math.inf, 1)
    violation = find_violations(result, budget)[0]
    assert (violation.metric, violation.found, violation.worst) == ("values not finite", 1, "s, row 1")


def test_infinities_of_the_source_must_be_met():
    assert find_violations(compared([[1.0, -np.inf]], [[1.0, -np.inf]]), Budget(rel=0)) == []
    assert compared([[1.0, -np.inf]], [[1.0, -1e30]]).outputs[0].relative == math.inf
    assert compared([[1.0, -np.inf]], [[1.0, np.inf]]).outputs[0].nonfinite == 1


def test_nan_of_the_source_is_an_error():
    with pytest.raises(VerifyFailed, match="source gives NaN"):
        compared([[1.0, np.nan]], [[1.0, np.nan]])


def test_dead_rows_are_not_compared_but_must_be_finite():
    expected, got = [[1.0, 1.0], [np.nan, 0.0]], [[1.0, 1.0], [5.0, 7.0]]
    result = compared(expected, got, dead=(1,))
    assert (result.rows, result.outputs[0].vectors, result.outputs[0].relative) == (1, 1, 0.0)
    assert not find_violations(compared(expected, [[1.0, 1.0], [np.nan, 7.0]], dead=(1,)), Budget()), (
        "the source gives NaN there, too"
    )
    broken = compared([[1.0, 1.0], [2.0, 0.0]], [[1.0, 1.0], [np.nan, 7.0]], dead=(1,))
    assert find_violations(broken, Budget())[0].worst == "s, row 1 (all masked)"


def test_dead_rows_of_an_output_without_rows():
    comparison = Comparison()
    comparison.add({"x": np.float32(1)}, {"x": np.float32(5)}, sample(2, dead=(1,)))
    with pytest.raises(DataError, match="no row"):
        comparison.result()
    comparison.add({"x": np.float32(1)}, {"x": np.float32(1)}, sample(2))
    out = comparison.result().outputs[0]
    assert (out.relative, out.uncompared, out.vectors) == (0.0, 1, 1)


def test_a_part_leaves_what_it_does_not_tell_of_to_the_others():
    """One sample with a row all masked, and an output of which nobody knows the rows: the other output is judged."""
    part = Comparison()
    part.add({"x": np.ones((2, 3)), "y": np.ones(5)}, {"x": np.full((2, 3), 2.0), "y": np.ones(5)}, sample(2, dead=(1,)))
    assert [(out.name, out.relative) for out in part.result(part=True).outputs] == [("x", 1.0)]
    with pytest.raises(DataError, match="no row of output 'y'"):
        part.result()


def test_nothing_compared_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        Comparison().result()
    with pytest.raises(DataError, match="no outputs"):
        Comparison().add({}, {}, sample())
    with pytest.raises(DataError, match="empty"):
        compared(np.zeros((1, 0)), np.zeros((1, 0)))
    with pytest.raises(DataError, match="masked"):
        compared([[1.0]], [[1.0]], dead=(0,))


@pytest.mark.parametrize("got", [{}, {"y": np.ones((1, 2))}, {"x": np.ones((1, 2)), "y": np.ones((1, 2))}])
def test_other_outputs_are_an_error(got):
    with pytest.raises(VerifyFailed, match="expected outputs x;"):
        Comparison().add({"x": np.ones((1, 2))}, got, sample())


def test_other_shapes_and_vanishing_outputs_are_errors():
    with pytest.raises(VerifyFailed, match=r"'x' has shape \(1, 3\)"):
        compared(np.ones((1, 2)), np.ones((1, 3)))
    comparison = Comparison()
    comparison.add({"x": np.ones(1), "y": np.ones(1)}, {"x": np.ones(1), "y": np.ones(1)}, sample())
    with pytest.raises(VerifyFailed, match="expected outputs x, y;"):
        comparison.add({"x": np.ones(1)}, {"x": np.ones(1)}, sample())


floats = hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@settings(max_examples=60, deadline=None)
@given(floats, floats)
def test_no_metric_is_ever_nan(b, a):
    out = compared(b, a).outputs[0]
    assert not any(math.isnan(v) for v in (out.max_abs, out.relative, out.cosine_min, out.cosine_mean, out.sqnr_db))
    assert -1 <= out.cosine_min <= out.cosine_mean + 1e-12 <= 1 + 1e-9
    assert (out.relative == 0) == np.array_equal(a, b)
    json.dumps(compared(b, a).to_json(), allow_nan=False)


# Decisions


def test_classes():
    decision = decided("sequence-classification", [[1, 2], [3, 1], [0, 1]], [[1, 2], [1, 3], [0, 9]])
    assert (decision.agreed, decision.total, decision.worst) == (2, 3, "s, row 1")
    assert decided("sequence-classification", [[1, 2], [3, 1]], [[1, 2], [1, 3]], dead=(1,)).value == 1.0


def test_single_logit_has_sign_and_order():
    sign, order = compared([[1.0], [2.0], [-1.0]], [[3.0], [2.0], [-1.0]], "sequence-classification", "logits").decisions
    assert (sign.value, order.agreed, order.total) == (1.0, 2, 3)
    assert order.worst == "s, row 0 and s, row 1"


def test_order_of_pairs_equals_kendall():
    stats = pytest.importorskip("scipy.stats")
    e, g = np.random.default_rng(3).standard_normal((2, 40, 1))
    order = compared(e, g, "sequence-classification", "logits").decisions[1]
    assert 2 * order.value - 1 == pytest.approx(stats.kendalltau(e, g).statistic)


def test_equal_scores_have_no_order():
    order = compared([[1.0], [1.0]], [[1.0], [2.0]], "sequence-classification", "logits").decisions[1]
    assert order.value is None
    assert "not enough" in order.note


@pytest.mark.parametrize("task", ["token-classification", "masked-lm"])
def test_positions_leave_out_masked_ones(task):
    expected = np.eye(3)[[[0, 1, 2], [2, 2, 2]]]
    got = np.eye(3)[[[0, 1, 1], [2, 0, 2]]]
    decision = decided(task, expected, got, mask=[[1, 1, 0], [1, 1, 1]])
    assert (decision.agreed, decision.total, decision.worst) == (4, 5, "s, row 1")
    assert decided(task, expected, got, dead=(1,), mask=[[1, 1, 1], [0, 0, 0]]).total == 3


def test_answer_spans():
    start, end = np.eye(4)[[0, 1]], np.eye(4)[[2, 3]]
    moved = np.eye(4)[[2, 2]]
    comparison = Comparison("question-answering")
    outputs = {"start_logits": start, "end_logits": end}
    comparison.add(outputs, outputs | {"end_logits": moved}, sample(mask=[[1, 1, 1, 1], [1, 1, 1, 1]]))
    (decision,) = comparison.result().decisions
    assert (decision.agreed, decision.total, decision.worst) == (1, 2, "s, row 1")


def test_answer_spans_leave_out_masked_positions():
    e, g = np.array([[1.0, 5.0, 2.0]]), np.array([[1.0, 2.0, 5.0]])
    comparison = Comparison("question-answering")
    comparison.add({"start_logits": e, "end_logits": e}, {"start_logits": g, "end_logits": e}, sample(mask=[[1, 1, 0]]))
    assert comparison.result().decisions[0].value == 1.0


def test_neighbours_across_batches():
    e = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    comparison = Comparison("sentence-embedding")
    for row, other in zip(e, [[1, 0], [0.9, 0.1], [0, 1], [0.9, 0.2]], strict=True):
        one = sample(label=f"text {row}")
        comparison.add({"sentence_embedding": row[None]}, {"sentence_embedding": np.array([other])}, one)
    (decision,) = comparison.result().decisions
    assert (decision.agreed, decision.total) == (2, 4)  # angles 0, 6.3, 90, 12.5: the second and the last choose otherwise
    assert decision.worst.startswith("text [0.9 0.1]")


def test_neighbours_equal_sklearn_over_several_blocks(monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr("bertc.verification.decisions.BLOCK", 7)
    e, g = np.random.default_rng(4).standard_normal((2, 30, 6)).astype(np.float32)
    g = e + 0.5 * g
    (decision,) = compared(e, g, "sentence-embedding").decisions
    found = [neighbors.NearestNeighbors(n_neighbors=2, metric="cosine").fit(x).kneighbors(x)[1][:, 1] for x in (e, g)]
    assert decision.agreed == int((found[0] == found[1]).sum())
    assert 0 < decision.agreed < 30


def test_copies_of_a_text_are_one_neighbour():
    e = np.array([[1, 0], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], np.float32)
    g = e + np.array([[0, 0], [0, 0], [0, 1e-4], [0, -1e-4]], np.float32)
    assert compared(e, g, "sentence-embedding").decisions[0].value == 1.0


def test_copies_within_rounding_are_one_neighbour():
    e = np.array([[1, 0], [0.7, 0.7], [0.7, 0.7 + 5e-7], [-1, 0]])
    g = np.array([[1, 0], [0.7, 0.8], [0.7, 0.7], [-1, 0]])
    assert compared(e, g, "sentence-embedding").decisions[0].agreed == 4


def test_a_vector_that_is_not_finite_has_no_neighbour():
    e = np.array([[1, 0], [0, 1], [0.9, 0.1]])
    g = np.array([[1, 0], [0, 1], [np.nan, 0.1]])
    decision = compared(e, g, "sentence-embedding").decisions[0]
    assert (decision.agreed, decision.worst) == (2, "s, row 2")


def test_two_vectors_are_not_enough():
    decision = compared(np.eye(2), np.eye(2), "sentence-embedding").decisions[0]
    assert decision == Decision("nearest neighbour", 0, 0, note="not enough: 2 vectors, 3 needed")
    assert find_violations(compared(np.eye(2), np.eye(2), "sentence-embedding"), DEFAULT_BUDGETS["fp16"]) == []


@pytest.mark.parametrize(
    ("ids", "blank", "wanted"), [([], 0, ()), ([0, 0], 0, ()), ([1, 1, 0, 1, 2, 2], 0, (1, 1, 2)), ([0, 3, 0, 0], 3, (0, 0))]
)
def test_collapse(ids, blank, wanted):
    assert ctc_collapse(ids, blank) == wanted


def test_transcripts():
    expected, got = np.eye(3)[[[1, 1, 0, 2], [1, 0, 2, 2]]], np.eye(3)[[[1, 0, 2, 2], [1, 2, 1, 2]]]
    decision = decided("ctc", expected, got, length=400)
    assert (decision.agreed, decision.total, decision.worst) == (1, 2, "s, row 1")


def test_the_labels_of_a_frame_hold_together_or_not():
    """Two speakers at once are two labels of one frame; frames of padding do not count."""
    expected = np.array([[[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]]])
    got = np.array([[[2.0, 0.5], [1.0, 1.0], [-3.0, -1.0], [1.0, 1.0]]])
    decision = decided("audio-frame-classification", expected, got, length=400)
    assert (decision.agreed, decision.total, decision.units) == (2, 4, 1)
    half = np.repeat([[1, 0]], 200, axis=1)
    assert decided("audio-frame-classification", expected, got, mask=half).value == 0.5


def test_transcripts_leave_out_padding():
    expected, got = np.eye(3)[[[1, 2, 0, 0]]], np.eye(3)[[[1, 2, 1, 1]]]
    half = np.repeat([[1, 0]], 200, axis=1)
    assert decided("ctc", expected, got, mask=half).value == 1.0
    assert decided("ctc", expected, got, length=400).value == 0.0


@pytest.mark.parametrize("task", ["features", "audio-features", "custom"])
def test_no_decision_is_said(task):
    result = compared([[1.0]], [[1.0]], task)
    assert result.decisions == ()
    assert "no decisions" in result.note


@pytest.mark.parametrize(
    "task", ["sequence-classification", "token-classification", "question-answering", "ctc", "sentence-embedding"]
)
def test_an_output_of_another_rank_is_said(task):
    decision = compared(np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)), task).decisions[0]
    assert decision.value is None
    assert decision.note.startswith("no output")


# Budgets


def test_every_limit_is_judged():
    result = compared(
        [[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]], "sequence-classification", "logits"
    )
    broken = find_violations(result, Budget(rel=0.1, cosine=0.9, sqnr_db=30, agreement=0.95))
    assert [v.metric for v in broken] == ["relative error", "relative error", "SQNR (dB)", "changed: class"]
    assert {v.worst for v in broken} == {"s, row 1"}
    assert str(broken[0]) == "logits: relative error 0.5, budget <= 0.1; worst: s, row 1"
    assert find_violations(result, Budget(rel=0.5, cosine=0.7, sqnr_db=3, agreement=0.0)) == []


def test_short_vectors_are_judged_by_their_length_and_long_ones_by_their_angle():
    """Two logits near zero turn by any angle; a token that says something must stay where it is."""
    quiet, loud = [0.001, 0.001], [5.0, -5.0]
    assert find_violations(compared([quiet, loud], [[0.001, -0.001], loud]), Budget(cosine=0.9999)) == []
    (broken,) = find_violations(compared([quiet, loud], [quiet, [5.0, -4.9]]), Budget(cosine=0.9999))
    assert (broken.metric, round(broken.wanted, 4)) == ("relative error", 0.0141)
    wide = np.full((2, 16), 0.001)
    turned = wide * np.where(np.arange(16) < 1, -1, 1)
    assert find_violations(compared(wide, turned), Budget(cosine=0.9999))[0].metric == "cosine"


def test_half_precision_around_int8_is_held_to_int8s_rounding():
    """A rounding that moves an activation over the border of two integers is a whole step; float32 moves none."""
    assert budget_for("fp16", {}, carried=True).cosine == budget_for("bf16", {}, carried=True).cosine == 0.99
    assert budget_for("fp32", {}, carried=True) == budget_for("fp32", {})
    assert "default of fp16 around int8" in budget_for("fp16", {}, carried=True).summary()
    assert budget_for("fp16", {"cosine": 0.999}, carried=True).cosine == 0.999, "what was asked for goes first"


def test_a_limit_says_who_set_it():
    budget = budget_for("fp16", {"cosine": 0.9, "alarm": 0.01, "max_drop": 0.2}, {"max_drop": 0.1, "rel": 0.5})
    assert {name: budget.origins[name] for name in ("cosine", "alarm", "max_drop", "rel")} == {
        "cosine": "given to the build",
        "alarm": "default of fp16",
        "max_drop": "--max-drop",
        "rel": "--budget",
    }
    assert "cosine >= 0.9 (given to the build)" in budget.summary()
    assert "max_drop <= 0.1 (--max-drop)" in budget.summary()
    assert "origins" not in budget.limits() and budget.limits()["sqnr_db"] is None
    (broken,) = find_violations(compared([[1.0]], [[3.0]]), budget_for("fp32", {}))
    assert "budget <= 1e-05 (default of fp32)" in str(broken) and "origin" not in broken.to_json()


@pytest.mark.parametrize(
    ("total", "wrong", "budget", "said"),
    [
        (64, 0, {"agreement": 0.99}, "undecided"),  # none of 64 changed: up to 5.6 % may
        (64, 0, {"max_drop": 0.01}, "undecided"),
        (64, 0, {"alarm": 0.01}, "passed"),
        (64, 1, {"alarm": 0.01}, "passed"),
        (64, 9, {"alarm": 0.01}, "failed"),
        (64, 9, {"agreement": 0.99}, "failed"),
        (400, 0, {"agreement": 0.99}, "passed"),
        (400, 1, {"max_drop": 0.02}, "passed"),
        (400, 40, {"max_drop": 0.05}, "failed"),
    ],
)
def test_decisions_are_judged_by_their_interval(total, wrong, budget, said):
    e = np.tile([[1.0, 2.0]], (total, 1))
    g = e.copy()
    g[:wrong] = g[:wrong, ::-1]
    comparison = Comparison("sequence-classification", intervals=True)
    comparison.add({"logits": e}, {"logits": g}, sample(total))
    broken = find_violations(comparison.result(), Budget(**budget))
    assert [violation.undecided for violation in broken] == {"passed": [], "failed": [False], "undecided": [True]}[said]


def test_an_undecided_budget_says_how_many_rows_would_decide():
    e = np.tile([[1.0, 2.0]], (64, 1))
    (broken,) = find_violations(compared(e, e, "sequence-classification", "logits"), Budget(agreement=0.99))
    assert "too few rows: 64; about 360 needed" in str(broken)


@pytest.mark.parametrize(
    ("task", "shape", "units"), [("token-classification", (4, 9, 3), 4), ("sequence-classification", (9, 1), 4)]
)
def test_what_is_not_independent_is_not_counted_as_evidence(task, shape, units):
    """The tokens of one text, and the pairs that share a row, are no more evidence than the rows."""
    e = np.random.default_rng(6).standard_normal(shape)
    assert compared(e, e, task, "logits", length=9).decisions[-1].units == units


@pytest.mark.parametrize(("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16")])
def test_default_budgets_hold_for_their_own_rounding(dtype, precision):
    b = np.random.default_rng(5).standard_normal((20, 64)).astype(np.float32)
    assert find_violations(compared(b, b.astype(dtype)), DEFAULT_BUDGETS[precision]) == []
    assert find_violations(compared(b, b.astype(np.float16)), DEFAULT_BUDGETS["fp32"])
    assert find_violations(compared(b, b * np.linspace(0.9, 1.1, 64)), DEFAULT_BUDGETS[precision])


def test_infinity_is_a_string_in_json():
    result = compared([[1.0]], [[1.0]])
    assert result.to_json()["outputs"]["x"]["sqnr_db"] == "inf"
    violation = find_violations(compared([[0.0]], [[1.0]]), Budget(rel=1))[0]
    assert json.loads(json.dumps(violation.to_json(), allow_nan=False))["found"] == "inf"
