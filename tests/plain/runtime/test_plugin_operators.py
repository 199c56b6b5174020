"""Nodes that stand for a plugin: what their metadata means was written by whoever wrote the artifact."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from bertc.core import ArtifactError
from bertc.runtime.plugin_operators import PLUGIN, PLUGIN_DOMAIN, spell_plugins

MEANT = {"launch": "bias_gelu", "operator": "FusedBiasGelu", "slots": [0, 1], "count": 2, "present": ["x", "bias", "out"]}


def model(text: str | None) -> ir.Model:
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        for name, shape in (("x", ["B", 4]), ("bias", [4]))
    ]
    node = ir.node("anything", values, domain=PLUGIN_DOMAIN, name="odd")
    if text is not None:
        node.metadata_props[PLUGIN] = text
    return ir.Model(ir.Graph(values, list(node.outputs), nodes=[node], opset_imports={"": 20, PLUGIN_DOMAIN: 1}), ir_version=10)


def test_a_meaning_is_spelt_out() -> None:
    made = model(json.dumps(MEANT))
    spell_plugins(made)
    assert {node.domain for node in made.graph} == {""}


@pytest.mark.parametrize(
    "change",
    [
        {"operator": "os.system"},
        {"operator": 3},
        {"slots": [0]},
        {"slots": [0, 2]},
        {"slots": [0, -1]},
        {"slots": "01"},
        {"count": 10**9},
        {"count": 1},
        {"turned": {"0": "10"}},
        {"attributes": [1]},
        {"attributes": {"a": {"b": 1}}},
    ],
)
def test_another_meaning_is_damage(change: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match=rf"^node 'odd' \(bertc.plugins.anything\): its metadata {PLUGIN}"):
        spell_plugins(model(json.dumps({**MEANT, **change})))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "[" * 10**5])
def test_no_meaning_is_damage(text: str | None) -> None:
    with pytest.raises(ArtifactError, match=rf"^node 'odd' \(bertc.plugins.anything\): its metadata {PLUGIN}"):
        spell_plugins(model(text))
