"""Nodes that a compiler takes for a plugin of ours: what they mean stands in their metadata, and is run as standard ONNX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..graph import DOMAIN
from ..ops import BODIES, replace_node, taken_names

PLUGIN_DOMAIN = "bertc.plugins"
PLUGIN = "bertc.plugin"  # metadata: {"operator", "slots": which of its `count` inputs are there}


def spell_plugins(model: ir.Model) -> None:
    """In place: the canonical body of the operator that each plugin computes."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == PLUGIN_DOMAIN]
    taken = taken_names(model) if nodes else set()
    for node in nodes:
        replace_node(model, node, _meaning, taken)


def _meaning(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    meant = json.loads(node.metadata_props[PLUGIN])
    given: list[ir.Value | None] = [None] * meant["count"]
    for slot, value in zip(meant["slots"], node.inputs, strict=True):
        given[slot] = value
    stand_in = ir.Node(DOMAIN, meant["operator"], given, list(node.attributes.values()), num_outputs=len(node.outputs))
    made = BODIES[meant["operator"]](op, stand_in)
    for index in range(len(given)):
        stand_in.replace_input_with(index, None)  # it is no node of the graph
    return made
