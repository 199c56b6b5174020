"""Integer outputs are the source's or not; two choices whose scores are equal within the tolerance are one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import ports
import pytest
from onnx import parser

from bertc.core import ExportFailed
from bertc.data.samples import Sample
from bertc.fusions.engine import fuse
from bertc.graph import Graph
from bertc.source import open_source
from bertc.verification import budgets, check_export, check_fused
from bertc.verification.budgets import Budget
from bertc.verification.choices import Ties
from bertc.verification.comparison import Comparison

FP32, FP16 = Budget(rel=1e-5), Budget(cosine=0.9999)
CHOICES = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, 6] x) => (int64[batch] best, int64[batch, 2] top, bool[batch, 6] high)
    <float one = {1.0}, int64[1] two = {2}> {
        scores = Mul(x, one)
        best = ArgMax<axis = 1, keepdims = 0>(scores)
        values, ranks = TopK<axis = 1>(scores, two)
        top = Identity(ranks)
        high = Greater(scores, one)
    }"""
X = np.array([[0, 5, 5 + 2e-5, 1, -3, 2], [9, 1, 4, 0, 0, 1 + 1e-6]], np.float32)
SOURCE = {"best": np.array([2, 0]), "top": np.array([[2, 1], [0, 2]]), "high": X > 1}


def judged(budget, **changed):
    graph = Graph(ir.from_proto(parser.parse_model(CHOICES)))
    comparison = Comparison("custom", ties=Ties(graph, budgets.choice_tolerance(budget)))
    comparison.add(SOURCE, SOURCE | changed, Sample("two rows", {"x": X}))
    result = comparison.result()
    return {v.output for v in budgets.find_violations(result, budget)}, {d.name: d for d in result.decisions}


def test_equal_choices_pass_and_are_counted():
    broken, decisions = judged(FP32)
    assert not broken
    assert {name: (d.agreed, d.total) for name, d in decisions.items()} == {"best": (2, 2), "top": (4, 4), "high": (12, 12)}


def test_a_tie_may_be_broken_either_way():
    high = SOURCE["high"].copy()
    high[1, 5] = False  # 1.000001 against 1
    broken, decisions = judged(FP32, best=np.array([1, 0]), top=np.array([[1, 2], [0, 2]]), high=high)
    assert not broken
    assert [decisions[name].note for name in ("best", "top", "high")] == ["1 tie", "2 ties", "1 tie"]


def test_another_choice_is_an_error_however_near_its_number_is():
    broken, decisions = judged(FP32, best=np.array([3, 0]))
    assert broken == {"best"} and decisions["best"].agreed == 1


def test_in_float16_a_gap_of_its_rounding_is_a_tie_and_a_wide_one_is_not():
    near = judged(FP16, top=np.array([[1, 2], [0, 2]]))
    assert not near[0] and near[1]["top"].note == "2 ties"
    wrong = {"best": np.array([4, 5]), "top": np.array([[4, 3], [5, 4]])}
    assert judged(FP16, **wrong)[0] == {"best", "top"}


def test_integers_that_no_choice_made_must_be_equal():
    """Tokens handed through: 101 for 100 is no small error."""
    expected, got = {"ids": np.array([[100, 7]])}, {"ids": np.array([[101, 7]])}
    comparison = Comparison("custom")
    comparison.add(expected, got, Sample("one row", {"ids": expected["ids"]}))
    assert [v.output for v in budgets.find_violations(comparison.result(), FP32)] == ["ids"]


OUTPUTS = {
    "one tensor twice": (", float[batch, 3] again", "again = Identity(logits)"),
    "computed twice": (", float[batch, 3] again", "again = MatMul(first, classes)"),
    "an input handed through": (", int64[batch, length] ids_out", "ids_out = Identity(input_ids)"),
    "a label": (", int64[batch] label", "label = ArgMax<axis = -1, keepdims = 0>(logits)"),
    "a rank and its score": (", int64[batch, 1] rank, float[batch, 1] best", "best, rank = TopK(logits, axes)"),
}
INPUTS = {
    "ids of a record, a flag": ", int64[batch] unique_ids, bool training",
    "types": ", int64[batch, length] token_type_ids",
}


@pytest.mark.parametrize("what", [*OUTPUTS, *INPUTS])
def test_ports_of_other_tools_survive_the_fusions(tmp_path, what):
    outputs, nodes = OUTPUTS.get(what, ("", ""))
    path = ports.encoder(tmp_path / "m.onnx", extra_inputs=INPUTS.get(what, ""), extra_outputs=outputs, extra_nodes=nodes)
    source = open_source(str(path))
    proof = check_export(source, (), lambda *_: None)
    fused = fuse(source.graph, source.dims)
    check_fused(fused, source, proof)
    wanted = [[v.name for v in values] for values in (onnx.load(path).graph.input, onnx.load(path).graph.output)]
    assert [[s.name for s in specs] for specs in (fused.graph.inputs, fused.graph.outputs)] == wanted
    assert fused.change.counts()


def test_a_graph_that_gives_other_labels_fails_the_check(tmp_path):
    path = ports.encoder(tmp_path / "m.onnx", extra_outputs=", int64[batch] label", extra_nodes=OUTPUTS["a label"][1])
    source = open_source(str(path))
    classes = source.graph.model.graph.initializers["classes"]
    classes.const_value = ir.tensor(classes.const_value.numpy()[:, ::-1].copy(), name="classes")
    source.graph.model.graph.outputs.pop(0)
    run = source.run
    import dataclasses

    source = dataclasses.replace(source, run=lambda feeds: {"label": run(feeds)["label"]})
    with pytest.raises(ExportFailed, match="label"):
        check_export(source, (), lambda *_: None)
