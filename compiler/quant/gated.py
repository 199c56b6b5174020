"""A graph in which every site can be switched between float32 and quantised while it runs: one session for all of a search.

A switch is an element of a boolean input. What is quantised is so by the Q/DQ pairs that `insert` writes, so what the search
measures is what will be built.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import Feeds, Outputs
from ..graph import Graph
from ..runtime import reference_session
from .fit import Fitted
from .insert import Writer, insert_qdq

GATES = "bertc.gates"


class Gated:
    """Runs a graph with any of its sites quantised."""

    def __init__(self, graph: Graph, fitted: Mapping[str, Fitted]) -> None:
        self.names = tuple(fitted)
        self._outputs = [spec.name for spec in graph.outputs]
        self._session, self._weights = reference_session(_switched(graph, fitted))

    def run(self, feeds: Feeds, quantised: Collection[str]) -> Outputs:
        """Outputs with the sites of these names quantised and all others in float32."""
        gates = np.array([name in quantised for name in self.names], bool)
        found: Sequence[Any] = self._session.run(self._outputs, {**self._weights, **feeds, GATES: gates})
        return dict(zip(self._outputs, found, strict=True))


def _switched(graph: Graph, fitted: Mapping[str, Fitted]) -> Graph:
    """Every quantised operand in one branch of an If whose other branch is the float operand.

    An If runs one branch: a search that tries one site at a time pays for one site.
    """
    made = insert_qdq(graph, fitted.values())
    main, floats = made.model.graph, {str(node.name): node for node in graph.model.graph}
    nodes = {str(node.name): node for node in main}
    values = {str(v.name): v for v in (*main.inputs, *main.initializers.values(), *(o for n in main for o in n.outputs))}
    gates = ir.Value(name=GATES, shape=ir.Shape([len(fitted)]), type=ir.TensorType(ir.DataType.BOOL))
    main.inputs.append(gates)
    for index, each in enumerate(fitted.values()):
        put = Writer(main, next(iter(main)), f"{each.site.name}/gate")
        gate = put.node("Gather", [gates, put.constant("index", np.array(index, np.int64))], gates, ir.DataType.BOOL)
        gate.shape = ir.Shape([])
        for name in each.site.nodes:
            for operand, old in enumerate(floats[name].inputs[:2]):
                _gate_operand(main, nodes[name], operand, _plain(main, values, name, operand, old), gate)
            if name in each.weights:
                _gate_bias(main, nodes[name], each.weights[name].bias, gate)
    return made


def _plain(main: ir.Graph, values: Mapping[str, ir.Value], name: str, operand: int, old: ir.Value | None) -> ir.Value:
    """The operand as it was; float weights are gone from the quantised graph, and come back."""
    assert old is not None
    if old.const_value is None or str(old.name) in main.initializers:
        return values[str(old.name)]
    return Writer(main, next(iter(main)), f"{name}/gate{operand}").constant("float", old.const_value)


def _gate_operand(main: ir.Graph, node: ir.Node, operand: int, plain: ir.Value, gate: ir.Value) -> None:
    quantised = node.inputs[operand]
    if quantised is plain or quantised is None or (maker := quantised.producer()) is None or maker.op_type == "If":
        return  # not quantised, or behind its If already: GEMMs of a site share their activation
    chain: list[ir.Node] = []
    while maker is not None and plain not in maker.inputs and maker.inputs[0] is not None:
        chain.insert(0, maker)
        maker = maker.inputs[0].producer()
    if maker is not None:
        chain.insert(0, maker)
    users = list(quantised.uses())
    near = chain[-1]
    same = ir.Node("", "Identity", [plain], name=f"{quantised.name}/float")
    same.outputs[0].name, same.outputs[0].type, same.outputs[0].shape = f"{same.name}.out", plain.type, plain.shape
    chosen = ir.Node("", "If", [gate], num_outputs=1, name=f"{quantised.name}/if")
    chosen.outputs[0].name, chosen.outputs[0].type = f"{chosen.name}.out", ir.TensorType(ir.DataType.FLOAT)
    chosen.outputs[0].shape = plain.shape
    main.insert_after(near, chosen)
    main.remove(chain)
    branches = (("then_branch", chain, quantised), ("else_branch", [same], same.outputs[0]))
    for name, inside, out in branches:
        chosen.attributes[name] = ir.AttrGraph(name, ir.Graph([], [out], nodes=inside, name=f"{chosen.name}/{name}"))
    for user, index in users:
        user.replace_input_with(index, chosen.outputs[0])


def _gate_bias(main: ir.Graph, node: ir.Node, gained: np.ndarray, gate: ir.Value) -> None:
    bias = main.initializers[f"{node.name}/weight/bias"]
    assert bias.const_value is not None
    users = list(bias.uses())
    put = Writer(main, node, f"{node.name}/bias_gate")
    array = bias.const_value.numpy()
    plain = put.constant("float", array - gained.reshape(array.shape))
    chosen = put.node("Where", [gate, bias, plain], bias)
    for user, index in users:
        user.replace_input_with(index, chosen)
