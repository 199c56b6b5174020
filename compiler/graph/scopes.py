"""Graphs inside graphs (the branches of an If, the bodies of Loop and Scan), where passes for flat graphs go wrong.

What a graph gives back must be made in that very graph: a branch that returns a value of the graph around it is no valid ONNX,
and needs its Identity. A match may not reach over the border of a graph, and names may stand twice in two branches but not in the
graph that both are moved to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir


def eliminate_identities(model: ir.Model) -> bool:
    """Take away every Identity that nothing needs; returns whether there was one.

    One stays where its output is an output of its graph and its input is not made by a node of the same graph, or is an output
    itself: two outputs of one value are two values. (onnx_ir's pass leaves the branch with a value that it does not make.)
    """
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    found = [_eliminated(node) for graph in graphs for node in list(ir.traversal.RecursiveGraphIterator(graph))]
    return any(found)


def _eliminated(node: ir.Node) -> bool:
    if node.op_type != "Identity" or node.domain or len(node.inputs) != 1 or node.inputs[0] is None or node.graph is None:
        return False
    source, result = node.inputs[0], node.outputs[0]
    shape = _merged(source.shape, result.shape)
    if shape is False:
        return False  # of two ranks: a branch that is never taken
    is_output = result.is_graph_output()
    if is_output:
        maker = source.producer()
        if maker is None or maker.graph is not node.graph or source.is_graph_output():
            return False
    source.shape, source.type = shape, source.type or result.type
    ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
    name = result.name
    node.graph.remove(node, safe=True)
    if is_output:
        source.name = name
    return True


def _merged(a: ir.Shape | None, b: ir.Shape | None) -> Any:
    """What is known of one shape by two spellings of it; False where they are of two ranks."""
    if a is None or b is None:
        return a if b is None else b
    if len(a) != len(b):
        return False
    return ir.Shape([_clearer(x, y) for x, y in zip(a, b, strict=True)])


def _clearer(a: Any, b: Any) -> Any:
    if isinstance(a, int) or isinstance(b, int):
        return a if isinstance(a, int) else b
    return a if a.value else b


def within_one_graph(rule: Any) -> Any:
    """An onnxscript rule that matches only where all nodes that it takes away lie in one graph."""

    def try_rewrite(*args: Any, **named: Any) -> Any:
        delta = rule.try_rewrite(*args, **named)
        if delta is None or len({node.graph for node in delta.match.nodes}) == 1:
            return delta
        for node in delta.new_nodes:  # as readers they would keep what they read alive
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        return None

    made = type("WithinOneGraph", (), {"__getattr__": lambda self, name: getattr(rule, name)})()
    made.try_rewrite = try_rewrite
    return made


def name_apart(model: ir.Model) -> None:
    """Give each value a name that no other value of the model has, inner graphs included, and each value that is read a name.

    Inputs and outputs of the model, and then its weights, keep theirs.
    """
    taken: dict[str, ir.Value] = {}
    for value in _values(model.graph):
        if not value.name and not (value.uses() or value.is_graph_output()):
            continue  # a left-out output
        wanted = value.name or "value"
        if taken.get(wanted, value) is not value:
            value.name = wanted = next(n for i in range(1, len(taken) + 2) if (n := f"{wanted}_{i}") not in taken)
        elif not value.name:
            value.name = wanted
        taken[wanted] = value


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from (*graph.inputs, *graph.outputs, *list(graph.initializers.values()))
    for node in graph:
        yield from node.outputs
    for inner in (inner for node in graph for inner in subgraphs(node)):
        yield from _values(inner)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside one node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
