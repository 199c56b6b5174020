"""What `bertc fuse` writes is loaded and run before it is kept, with and without proofs."""

from __future__ import annotations

from pathlib import Path

import control_flow
import numpy as np
import onnx
import onnxruntime
import pytest

from bertc.cli._main import run

TEXT = '<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y) { a = Neg (x) b = Neg (a) y = Relu (b) }'
RULES = """
from onnxscript.rewriter import pattern

class Wrong(pattern.RewriteRuleClassBase):
    def pattern(self, op, x):
        return op.Neg(op.Neg(x))
    def rewrite(self, op, x):
        return {made}

RULES = [Wrong.rule()]
"""
FAULTS = {
    "answers otherwise": ("op.Neg(x)", "relative error"),
    "does not run": ("op.Reshape(x, op.Constant(value_ints=[7, 7, 7]))", "does not run"),
    "does not load": ("op.NoSuchOperator(x)", "ONNX Runtime"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_source_is_not_kept(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, word = FAULTS[fault]
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "in.onnx")
    (tmp_path / "rules.py").write_text(RULES.format(made=made))
    out = tmp_path / "out.onnx"
    out.write_text("what was there")
    asked = ["fuse", str(tmp_path / "in.onnx"), "-o", str(out), "--force", "--no-prove", "--rules", str(tmp_path / "rules.py")]
    assert run(asked) == 1
    assert "nothing was written" in (said := " ".join(capsys.readouterr().err.split())) and word in said
    assert out.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "rules.py"]


@pytest.mark.parametrize("prove", ["--prove", "--no-prove"])
@pytest.mark.parametrize("seed", [0, 1, 3, 6])
def test_graphs_inside_graphs_are_fused_whole(seed: int, prove: str, tmp_path: Path) -> None:
    model = control_flow.random_graph(seed)
    onnx.save(model, tmp_path / "in.onnx")
    assert run(["fuse", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx"), prove]) == 0
    first, second = (onnxruntime.InferenceSession(tmp_path / name) for name in ("in.onnx", "out.onnx"))
    for feeds in control_flow.feeds():
        fed = {entry.name: feeds[entry.name] for entry in first.get_inputs()}
        for a, b in zip(first.run(None, fed), second.run(None, fed), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["null=fp32", "null=fp16", "onnxruntime=fp32"])
@pytest.mark.parametrize("seed", [1, 3, 6])
def test_they_are_built_in_every_type(seed: int, target: str, tmp_path: Path) -> None:
    onnx.save(control_flow.random_graph(seed), tmp_path / "in.onnx")
    assert run(["build", str(tmp_path / "in.onnx"), "--target", target, "--no-verify", "-o", str(tmp_path / "a")]) == 0
    assert run(["verify", str(tmp_path / "a")]) == 0
