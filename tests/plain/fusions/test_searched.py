"""The work of matching grows with the nodes of a graph, not with their square."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from onnxscript.rewriter import _matcher

from benchmarks.long_graphs import write
from bertc.fusions import engine, rewrite
from bertc.fusions.rules import skip_layernorm
from bertc.graph import Graph, infer_shapes


@pytest.mark.parametrize("shape", ["chain", "wide"])
def test_matching_is_linear(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [0]
    match_node = _matcher.SimplePatternMatcher._match_node

    def counted(self: object, *arguments: object) -> bool:
        tried[0] += 1
        return match_node(self, *arguments)

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "_match_node", counted)
    counts = []
    for nodes in (100, 400):
        model = ir.load(write(shape, nodes, tmp_path / f"{nodes}.onnx"))
        infer_shapes(model)
        tried[0] = 0
        rewrite.apply_rules(Graph(model), engine.named_rules("skip_layernorm", skip_layernorm.RULES))
        counts.append(tried[0])
    assert counts[0] > 100 and counts[1] < 5 * counts[0]
