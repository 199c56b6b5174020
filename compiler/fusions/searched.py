"""Where onnxscript's matcher looks for the other outputs of a pattern that has several.

It tries every node of the graph of the right type in the place of each, from every node that may be the first: the square of the
graph's nodes. Where the others are made on the way to the first (a sum that is normalised, and read besides), they stand a few
nodes above it, and only those are offered. The matching itself stays onnxscript's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern


class Searched:
    """The nodes of a graph that a rule needs to be shown, for each node that its pattern may begin at."""

    def __init__(self, rule: pattern.RewriteRule, graph: ir.Graph) -> None:
        self._graph = graph
        target = getattr(rule, "_target_pattern", None)  # onnxscript's own attribute; without it, it is only slower
        self._roots = list(target.output_nodes) if target is not None else []
        self._above = set(_above(self._roots[0])) if len(self._roots) > 1 else set()
        self.bounded = len(self._roots) > 1 and all(root in self._above for root in self._roots[1:])
        self._spare: dict[Any, ir.Node] = {}  # a node of each type: with one, the matcher says where the first output failed
        if self.bounded:
            for node in graph:
                self._spare.setdefault(node.op_identifier(), node)

    def near(self, node: ir.Node) -> Any:
        """The graph itself, or what stands for it."""
        return _Near(self._graph, self._offered(node)) if self.bounded else self._graph

    def _offered(self, node: ir.Node) -> list[ir.Node]:
        found, level = {node: None}, [node]
        for _ in self._above:  # no path of a pattern is longer than it has nodes
            inputs = (value.producer() for each in level for value in each.inputs if value is not None)
            level = list(dict.fromkeys(n for n in inputs if n is not None and n not in found and self._may_be_inside(n)))
            found |= dict.fromkeys(level)
        kinds = {each.op_identifier() for each in found}
        more = (self._spare.get(root.op_identifier()) for root in self._roots[1:] if root.op_identifier() not in kinds)
        return [*found, *(each for each in more if each is not None)]

    def _may_be_inside(self, node: ir.Node) -> bool:
        return any(each.op.matches(node.op_type) for each in self._above)


class _Near:
    """A graph in which only some nodes are found; the matcher takes it for a function, and asks for its graph."""

    def __init__(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        self.graph, self._nodes = graph, nodes
        self.opset_imports = graph.opset_imports

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(self._nodes)


def _above(root: Any) -> Iterator[Any]:
    """The nodes of a pattern that its first output is made of, that one included."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        for value in node.inputs:
            todo += [made for each in _choices(value) if (made := each.producer()) is not None]


def _choices(value: Any) -> Iterator[Any]:
    """A value of a pattern, or each of the values that may stand in its place."""
    by_operator = getattr(value, "_op_to_pattern", None)
    several = getattr(value, "_values", None) if by_operator is None else [each for _, each in by_operator.values()]
    if several is None:
        if value is not None and callable(getattr(value, "producer", None)):
            yield value
        return
    for each in several:
        yield from _choices(each)
