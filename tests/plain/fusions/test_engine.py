"""Fusing a whole graph: order, expectations, near-misses, a user's own rules, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc.cli._main import run
from bertc.core.errors import CheckFailed, RecipeError
from bertc.fusions import engine as fuse
from bertc.fusions import families
from bertc.fusions.rewrite import Applied, Change, Refusal
from bertc.graph.model import Graph

FUSIONS = Path(fuse.__file__).parent / "rules"


def test_every_rule_file_has_its_place_in_the_order() -> None:
    on_disk = {p.stem for p in FUSIONS.glob("*.py") if not p.stem.startswith("_")}
    assert on_disk == set(fuse.ORDER)


def test_a_shortfall_names_rule_node_and_reason() -> None:
    change = Change(
        tuple(
            Applied(rule, "n", "")
            for rule, n in families.expected_counts("bert", 2).items()
            for _ in range(n)
            if rule != "attention"
        ),
        (Refusal("attention", "node_7", "Reshape", "encoder.layer.1.attention", "the number of heads is not known (view_3)"),),
    )
    with pytest.raises(CheckFailed) as caught:
        fuse.expect_fusions(None, change, "bert:2")  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith("attention: 0 of 2 found")
    assert "attention at Reshape 'node_7' in encoder.layer.1.attention: the number of heads is not known" in text


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'roberta'"):
        fuse.expect_fusions(None, Change(), "robert:2")  # type: ignore[arg-type]


RULES = """
from onnxscript.rewriter import pattern

class DoubleNeg(pattern.RewriteRuleClassBase):
    def pattern(self, op, x):
        return op.Neg(op.Neg(x))
    def rewrite(self, op, x):
        return op.Identity(x)

RULES = [DoubleNeg.rule()]
"""


def test_a_users_own_rule_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y)
        { a = Neg (x)
          b = Neg (a)
          y = Relu (b) }"""
    )
    onnx.save(model, tmp_path / "in.onnx")
    (tmp_path / "mine.py").write_text(RULES)
    words = ["fuse", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx"), "--rules", str(tmp_path / "mine.py"), "--json"]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"mine": 1}
    assert "Neg" not in {n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node}
    assert run(words) == 2, "an output that exists is not replaced"
    assert run([*words, "--force"]) == 0


def test_a_users_wrong_rule_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => (float[B,4] y)
        { a = Neg (x)
          b = Neg (a)
          y = Relu (b) }"""
    )
    onnx.save(model, tmp_path / "in.onnx")
    (tmp_path / "wrong.py").write_text(RULES.replace("op.Identity(x)", "op.Abs(x)"))
    words = [
        "fuse",
        str(tmp_path / "in.onnx"),
        "-o",
        str(tmp_path / "out.onnx"),
        "--rules",
        str(tmp_path / "wrong.py"),
        "--explain",
    ]
    assert run([*words, "--json"]) == 0
    (refusal,) = json.loads(capsys.readouterr().out)["refusals"]
    assert refusal["rule"] == "wrong"
    import onnxruntime

    x = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.maximum(x, 0))


@pytest.mark.parametrize("text", ["", "RULES = []", "raise ValueError('broken')"])
def test_a_rules_file_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.py"
    path.write_text(text)
    with pytest.raises(RecipeError, match="rules"):
        fuse.rules_from_file(path)
    with pytest.raises(RecipeError, match="no such Python file"):
        fuse.rules_from_file(tmp_path / "absent.py")


def test_an_expectation_is_never_passed_over_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[B,4] x) => (float[B,4] y) { y = Relu (x) }"""
    )
    onnx.save(old, tmp_path / "old.onnx")
    build = ["build", str(tmp_path / "old.onnx"), "--target", "null", "--expect", "bert:1"]
    assert run([*build, "-o", str(tmp_path / "a")]) == 1
    said = capsys.readouterr().err
    assert "attention: 0 of 1 found" in said
    assert "converted from 17 to 20" in said
    assert run([*build, "--no-fuse", "-o", str(tmp_path / "b")]) == 2
    assert "--no-fuse makes none" in " ".join(capsys.readouterr().err.split())


def test_what_a_family_promises_once_is_added_to_what_its_layers_promise() -> None:
    found = families.expected_counts("wav2vec2", 12)
    assert found == {"attention": 12, "skip_layernorm": 25, "bias_gelu": 12, "conv1d_gelu": 8}
    assert families.expected_counts("bert", 2)["skip_layernorm"] == 4


def test_convolutions_are_no_transformer_layers() -> None:
    def node(path: str) -> ir.Node:
        return ir.Node("", "Add", [], metadata_props={"pkg.torch.onnx.name_scopes": str(["", path, "op"])})

    paths = [f"m.feature_extractor.conv_layers.{i}.conv" for i in range(7)] + ["m.encoder.layers.0.fc", "m.encoder.layers.1.fc"]
    graph = ir.Graph([], [], nodes=[node(path) for path in paths])
    assert fuse.layers_of(Graph(ir.Model(graph, ir_version=10))) == 2
