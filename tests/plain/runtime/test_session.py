"""Graphs that ONNX Runtime refuses, when it loads them or only when it runs them: always one sentence that says what and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bertc.core import ArtifactError, BertcError, BuildFailed, DataError, Missing, RunFailed, naming
from bertc.runtime import open_session, reference_options

# Sizes that are known only at run time: nothing is wrong with them when the session is made.
LATE = {
    "Conv": "y = Conv (x, w)",
    "Reshape": "five = Constant <value_ints = [5, 1, 1]> () y = Reshape (x, five)",
    "Gather": "index = Constant <value_ints = [99]> () y = Gather (x, index)",
    "Expand": "size = Shape (w) y = Expand (x, size)",
}
TEXT = '<ir_version: 10, opset_import: ["" : 20]> g (float[a, b, c] x, float[d, e, f] w) => (float[k, l, m] y) {{ {} }}'


@pytest.mark.parametrize("operator", LATE)
def test_a_graph_that_cannot_run_says_which_node_and_why(operator: str) -> None:
    model = onnx.parser.parse_model(TEXT.format(LATE[operator]))
    session = open_session(model.SerializeToString(), reference_options())
    feeds = {"x": np.ones((2, 3, 4), np.float32), "w": np.ones((7, 5, 3), np.float32)}
    with pytest.raises(RunFailed, match=f"loads the graph and cannot run it: .*{operator}"):
        session.run(None, feeds)


@pytest.mark.parametrize(("domain", "advice"), [("bertc", "build or fuse it again"), ("acme", "no function in the file")])
def test_an_operator_that_nobody_defines_is_named(domain: str, advice: str) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 20, "{domain}" : 1]> g (float[2] x) => (float[2] y) {{ y = {domain}.Odd (x) }}'
    with pytest.raises(BuildFailed, match=f"no operator Odd of domain {domain}.*{advice}"):
        open_session(onnx.parser.parse_model(text).SerializeToString(), reference_options())


def test_a_path_is_named_once_and_only_where_it_is_at_fault() -> None:
    def said(error: BertcError) -> str:
        with pytest.raises(type(error)) as caught, naming(Path("out/art"), [Path("out/other")]):
            raise error
        return str(caught.value)

    assert said(RunFailed("it does not run")) == "out/art: it does not run"
    assert said(ArtifactError("out/art lacks a file")) == "out/art lacks a file"
    assert said(ArtifactError("out/other is no artifact")) == "out/other is no artifact"
    assert said(RunFailed("a part of others.onnx")).startswith("out/art: "), "art is no word there"
    assert said(Missing("no GPU")) == "no GPU" and said(DataError("texts.txt is empty")) == "texts.txt is empty"
