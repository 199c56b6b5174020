"""Which nodes a rule is tried at: the type of its root decides, and nothing that had begun to match is lost by it."""

from __future__ import annotations

from typing import Any

import pytest
from fusing import parsed
from rules import fuse, lines, parse, rules

from bertc.fusions import rewrite
from bertc.fusions.engine import ORDER
from bertc.graph.model import Graph


def applied(name: str, text: str) -> tuple[Graph, rewrite.Change]:
    before = parsed(text) if name == "flat_attention" else parse(text)  # its texts are those of a cleaned graph
    module = rules(name)
    return (
        module.apply(before) if hasattr(module, "apply") else rewrite.apply_rules(before, [(name, rule) for rule in module.RULES])
    )


@pytest.mark.parametrize("name", ORDER)
def test_asking_for_the_root_first_changes_no_match_and_no_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*rules(name).EXAMPLES, *(text for text, _ in rules(name).NEAR_MISSES)]
    quick = [applied(name, text) for text in texts]
    assert any(change.applied for _, change in quick)
    monkeypatch.setattr(rewrite, "may_start", lambda rule: lambda node: True)
    for text, (graph, change) in zip(texts, quick, strict=True):
        whole, found = applied(name, text)
        assert lines(whole) == lines(graph)
        assert found.to_json() == change.to_json()


def test_onnxscript_is_asked_at_the_nodes_a_rule_can_begin_at_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    [text, *_] = rules("layernorm").EXAMPLES
    asked: list[tuple[Any, str]] = []
    kind = type(rules("layernorm").RULES[0])
    call = kind.try_rewrite

    def record(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        asked.append((self, node.op_type))
        return call(self, model, graph, node, **options)

    monkeypatch.setattr(kind, "try_rewrite", record)
    before, _, change = fuse("layernorm", text)
    assert change.applied
    assert 0 < len(asked) < len(rules("layernorm").RULES) * len(before.model.graph)
    assert {op for _, op in asked} < {node.op_type for node in before.model.graph}
