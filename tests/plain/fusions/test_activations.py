"""Captured activations: what a proof is fed from the graph's own run, and that it finds what made-up numbers do not."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny

from bertc import pipeline, targets
from bertc.core.errors import DataError
from bertc.core.profiles import Dim
from bertc.core.progress import Progress
from bertc.data import synthetic as data
from bertc.fusions import engine as fuse
from bertc.fusions.proof import activations
from bertc.graph import normalization as cleanup
from bertc.graph.model import Graph
from bertc.recipe import Recipe
from bertc.source import onnx_file as onnx_source
from bertc.verification import export_check

DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, 40)}
OUTLIERS = """
<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch,length] ids, int64[batch,length] attention_mask) => (float[batch,length,2] y)
<float[3,2] word = {100, -100, 200, 5, 3, 70}> {
    x = Gather (word, ids)
    r = Relu (x)
    y = Identity (r)
}
"""
CLIPS = """
from onnxscript.rewriter import pattern

class Clipped(pattern.RewriteRuleClassBase):
    def pattern(self, op, x):
        return op.Relu(x)

    def rewrite(self, op, x):
        return op.Clip(x, op.Constant(value_float=0.0), op.Constant(value_float=50.0))

RULES = [Clipped.rule()]
"""


def graph(text: str = OUTLIERS) -> Graph:
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))


def test_a_rule_that_is_wrong_beyond_ordinary_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips.py").write_text(CLIPS)
    refused = fuse.fuse(graph(), DIMS, rules_file=tmp_path / "clips.py")
    assert refused.change.counts() == {}
    assert any("captured activations 0" in r.reason for r in refused.change.refusals), refused.change.refusals
    monkeypatch.setattr(activations, "capture_activations", lambda *_: {})
    assert fuse.fuse(graph(), DIMS, rules_file=tmp_path / "clips.py").change.counts() == {"clips": 1}


def test_values_are_those_of_a_run_and_every_row_lives() -> None:
    source = models.opened("features")
    found = activations.capture_activations(source.graph, data.synthetic_samples(source.graph, source.dims))
    mask = found["attention_mask"]
    assert mask.shape[0] == 2 and mask.shape[1] <= 16 and mask.any(1).all() and not mask.all()
    names = {str(v.name) for node in cleanup.normalize(source.graph).model.graph for v in node.outputs}
    assert len(names & set(found)) > 0.9 * len(names), names - set(found)
    wanted = models.run_graph(source.graph, {spec.name: found[spec.name] for spec in source.graph.inputs})
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6)


def test_bytes_are_bounded() -> None:
    samples = data.synthetic_samples(graph(), DIMS)
    whole = activations.capture_activations(graph(), samples)
    first = activations.capture_activations(graph(), samples, limit=whole["x"].nbytes)
    assert set(first) == {"ids", "attention_mask", "x"} and set(whole) > set(first)


def test_a_graph_that_cannot_be_run_is_said() -> None:
    broken = graph(
        OUTLIERS.replace("ids)", "big)").replace("x = ", "s = Constant <value_int = 7> ()\n big = Add (ids, s)\n x = ")
    )
    with pytest.raises(DataError, match="indices element out of data bounds"):
        activations.capture_activations(broken, data.synthetic_samples(graph(), DIMS))
    (note,) = fuse.fuse(graph(), {}).notes
    assert "random activations only" in note and "unknown dimension 'batch'" in note


def test_weights_beside_the_file_are_found_from_anywhere(tmp_path: Path) -> None:
    for name, external in (("one.onnx", False), ("two.onnx", True)):
        tiny.encoder(tmp_path / name, external=external)
    inside, beside = (onnx_source.read_onnx_file(tmp_path / name)[:2] for name in ("one.onnx", "two.onnx"))
    wanted = activations.capture_activations(inside[0], data.synthetic_samples(*inside))
    found = activations.capture_activations(beside[0], data.synthetic_samples(*beside))
    assert set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("prove", [True, False])
def test_a_build_without_proof_says_so(prove: bool) -> None:
    made, log = models.opened("features"), Progress()
    asked = Recipe("features", prove=prove, targets=("tensorrt-rtx:sm89=fp16",))
    proof = export_check.check_export(made, [], lambda *_: None, seed=asked.seed)
    found = pipeline.fuse_graph(asked, made, [pipeline.Build(targets.parse_spec(asked.targets[0]), "fp16")], proof, log)
    assert found is not None and found.change.counts()["attention"] == 2
    assert all((applied.error is not None) == prove for applied in found.change.applied)
    assert any("not proven one by one (--no-prove)" in note for note in log.notes) != prove
