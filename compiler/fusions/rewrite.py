"""The rule base: apply fusion rules to a graph, prove each match before it is kept, and say why candidates were not fused.

Matching is onnxscript's (`onnxscript.rewriter.pattern`). What is added here: a match is applied only after `prove` accepted it,
and the best candidates that were not fused are kept with the reason, by rule and node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from ..graph import DOMAIN, Graph, may_start
from ..graph import provenance as origin
from .searched import Searched

RULE = "bertc.rule"
# Rules that look at one node: one node that fails the check is a candidate, too.
ONE_NODE = frozenset({"causal", "onnx_attention"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Where"})


@dataclasses.dataclass(frozen=True)
class Applied:
    """One match that was kept: the rule, the new node, where it came from, and how far the proof found it from the original."""

    rule: str
    node: str
    module: str
    error: float | None = None


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A candidate not fused: the rule's pattern began to match at a node, and this is where and why it stopped."""

    rule: str
    node: str
    op: str
    module: str
    reason: str

    def __str__(self) -> str:
        place = f" in {self.module}" if self.module else ""
        return f"{self.rule} at {self.op} {self.node!r}{place}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Change:
    """What the rules did to a graph."""

    applied: tuple[Applied, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def counts(self) -> dict[str, int]:
        """Matches kept, by rule."""
        found: dict[str, int] = {}
        for each in self.applied:
            found[each.rule] = found.get(each.rule, 0) + 1
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts(),
            "applied": [dataclasses.asdict(a) for a in self.applied],
            "refusals": [dataclasses.asdict(r) for r in self.refusals],
        }


@dataclasses.dataclass(frozen=True)
class Match:
    """A match before it is applied: the nodes it takes away, what they read and make, and what would take their place."""

    rule: str
    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value, ...]
    new_nodes: tuple[ir.Node, ...]
    new_outputs: tuple[ir.Value, ...]
    initializers: tuple[ir.Value, ...]
    bindings: Mapping[str, Any]


# A proof returns the relative error of a match, or the reason why it must not be kept.
Prove = Callable[[Match], float | str]


def apply_rules(
    graph: Graph, rules: Sequence[tuple[str, pattern.RewriteRule]], prove: Prove | None = None, in_place: bool = False
) -> tuple[Graph, Change]:
    """Apply rules in order, each over the whole graph, to a copy of `graph`.

    `in_place`: to the graph itself, which is the caller's own: a copy for each of many rules is a third of the time.
    """
    copy = graph if in_place else graph.copy()
    _measure_results(copy.model.graph)
    applied: list[Applied] = []
    refusals: dict[tuple[str, ir.Node], tuple[float, Refusal]] = {}
    for name, rule in rules:
        tracer = _Tracer(name, refusals)
        searched, starts = Searched(rule, copy.model.graph), may_start(rule)
        for node in list(copy.model.graph):
            if node.graph is not copy.model.graph:
                continue  # taken away by a match before
            if not starts(node):
                continue
            delta = rule.try_rewrite(copy.model, searched.near(node), node, tracer=tracer)
            if delta is not None:
                _keep(copy.model, name, node, delta, prove, applied, refusals)
    if applied:
        _drop_unread(copy.model.graph)
        copy.model.graph.sort()  # a node of two outputs stands where its last one stood, perhaps behind readers of the first
    kept = tuple(r for _, r in refusals.values())
    copy.model.opset_imports.setdefault(DOMAIN, 1)
    return copy, Change(tuple(applied), kept)


def _keep(
    model: ir.Model,
    name: str,
    node: ir.Node,
    delta: Any,
    prove: Prove | None,
    applied: list[Applied],
    refusals: dict[tuple[str, ir.Node], tuple[float, Refusal]],
) -> None:
    match = Match(
        name,
        tuple(delta.match.nodes),
        tuple(delta.match.outputs),
        tuple(delta.new_nodes),
        tuple(delta.new_outputs),
        tuple(delta.new_initializers),
        delta.match.bindings,
    )
    where = origin.unite_origins(map(origin.origin_of, match.nodes)).module
    answer = prove(match) if prove else None
    if isinstance(answer, str):
        refusals[name, node] = (1e9, Refusal(name, str(node.name), node.op_type, where, answer))
        _detach(match.new_nodes)
        return
    for value in match.initializers:
        _register(model.graph, value)
    alike: dict[str, int] = {}  # two constants of one mask, say
    for new in match.new_nodes:
        alike[new.op_type] = count = alike.get(new.op_type, 0) + 1
        kind = new.op_type if count == 1 else f"{new.op_type}_{count}"
        new.name = f"{name}.{node.name}" if len(match.new_nodes) == 1 else f"{name}.{node.name}.{kind}"
        new.metadata_props[RULE] = name
        for index, value in enumerate(new.outputs):
            value.name = f"{new.name}.{index}"  # a name that another value had would get that one's captured activations
    origin.take_over_origins(match.nodes, match.new_nodes)
    for old, new_value in zip(match.outputs, match.new_outputs, strict=True):
        new_value.name, new_value.type, new_value.shape = old.name, old.type, old.shape
    _type_inner(match.new_nodes)
    ir.convenience.replace_nodes_and_values(model.graph, node, match.nodes, match.new_nodes, match.outputs, match.new_outputs)
    applied.append(Applied(name, str(match.new_nodes[-1].name), where, answer))


def _type_inner(nodes: Sequence[ir.Node]) -> None:
    """Types of what lies between a rule's new nodes (a sum of two masks): elementwise, so its inputs say it.

    A later match may read it, and what has no known rank cannot be proven.
    """
    for node in nodes:
        given = [v for v in node.inputs if v is not None and v.shape is not None]
        if node.op_type not in ELEMENTWISE or not given or node.outputs[0].shape is not None:
            continue
        rank = max(len(v.shape) for v in given if v.shape is not None)
        padded: list[list[Any]] = [[1] * (rank - len(v.shape)) + [*v.shape] for v in given if v.shape is not None]
        sizes = [next((d for d in axis if d != 1), 1) for axis in zip(*padded, strict=True)]
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(given[-1].dtype or ir.DataType.FLOAT), ir.Shape(sizes)


def _measure_results(graph: ir.Graph) -> None:
    """A Shape of a sum that is normalised reads the result, of the same shape: one more reader would keep the sum from fusing."""
    moved = False
    for node in graph:
        value = node.inputs[0] if node.op_type == "Shape" else None
        norms = [n for n in value.consumers() if n.op_type == "LayerNormalization" and n.inputs[0] is value] if value else []
        if norms:
            node.replace_input_with(0, norms[0].outputs[0])
            moved = True
    if moved:
        graph.sort()


def _drop_unread(graph: ir.Graph) -> None:
    """A rule may take the last node of a chain away and make nothing of the others. (onnx_ir's pass also cuts absent inputs.)"""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, weight in list(graph.initializers.items()):
        if not (weight.uses() or weight.is_graph_output() or weight.is_graph_input()):
            del graph.initializers[name]  # packed with others, it would be written twice


def _register(graph: ir.Graph, value: ir.Value) -> None:
    """Rules name an initializer after what it is made of: an equal name is the same tensor, stored once (shared layers)."""
    existing = graph.initializers.get(str(value.name))
    if existing is None:
        graph.register_initializer(value)
    else:
        value.replace_all_uses_with(existing)


def _detach(nodes: Sequence[ir.Node]) -> None:
    """Refused nodes read nothing any more: as readers they would keep later rules from taking away what they read."""
    for node in nodes:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


class _Tracer(pattern.MatchingTracer):
    """Keeps the candidates of one rule: at each root node, the attempt that matched the most nodes before it stopped."""

    def __init__(self, name: str, found: dict[tuple[str, ir.Node], tuple[float, Refusal]]) -> None:
        super().__init__()
        self.name, self.found = name, found

    def log(self, rule: Any, container: Any, node: ir.Node, match_result: Any, status: Any) -> None:
        if status == pattern.MatchStatus.SUCCESS:
            self.found.pop((self.name, node), None)
            return
        score = len(match_result.nodes) + 0.5 * (status == pattern.MatchStatus.CONDITION_FAILED)  # a check says more than a shape
        if score < (1.5 if self.name in ONE_NODE else 2) or score <= self.found.get((self.name, node), (0.0,))[0]:
            return  # one node of the right type is no candidate
        where = [n for n in match_result.failure_nodes_and_values or () if n is not None]
        spot = f" ({', '.join(str(getattr(w, 'name', w)) for w in where[:2])})" if where else ""
        whole = "" if where or status != pattern.MatchStatus.NO_MATCH else _needed_outside(match_result.nodes, node)
        reason = whole or f"{match_result.reason or 'the pattern stops here'}{spot}"
        self.found[self.name, node] = (score, Refusal(self.name, str(node.name), node.op_type, origin.module_path(node), reason))


def _needed_outside(nodes: Sequence[ir.Node], root: ir.Node) -> str:
    """Which value inside a whole match keeps it from being taken away, and what needs it; "" where none does."""
    for value in (value for node in nodes if node is not root for value in node.outputs):
        others = [user for user, _ in value.uses() if user not in nodes]
        if not others and not value.is_graph_output():
            continue
        kind = value.producer().op_type  # type: ignore[union-attr]
        what = "what the softmax gives, the attention weights" if kind == "Softmax" else f"the result of {kind}"
        needed = f"by {others[0].op_type} {others[0].name!r}" if others else "as an output of the graph"
        return f"{what} ({value.name}), is needed outside as well, {needed}"
    return ""
