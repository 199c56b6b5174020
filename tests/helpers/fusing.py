"""Helpers of the tests of linear, sdpa and attention: graphs from text, and runs of what the rules made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from models import session

from bertc.fusions import rewrite
from bertc.fusions.rules import attention, linear, sdpa
from bertc.graph import normalization as cleanup
from bertc.graph.model import Graph
from bertc.ops import expansion as canonical

RULES = [(name, rule) for name, module in (("linear", linear), ("sdpa", sdpa), ("attention", attention)) for rule in module.RULES]


def parsed(text: str, **weights: np.ndarray) -> Graph:
    """A cleaned graph from ONNX text; `weights` take the place of initializers of the same name."""
    model = ir.from_onnx_text(text)
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return cleanup.normalize(Graph(model))


def fused(graph: Graph) -> tuple[Graph, rewrite.Change]:
    return rewrite.apply_rules(graph, RULES)


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


def run(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, bertc operators expanded."""
    names = {value.name for value in graph.model.graph.inputs}
    taken = {name: array for name, array in feeds.items() if name in names}
    return session(canonical.expand(graph)).run(None, taken)[0]


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
