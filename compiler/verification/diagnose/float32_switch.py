"""A typed graph as one float32 session in which each node can run in float32 or rounded, chosen for each run.

As in `reference`, half precision is emulated: a float32 graph that rounds. Here every reader's input is a choice: rounded, or
exact where its maker and the reader are both in float32. So such a node computes in float32 and gives float32 to
readers in float32 alone: what a float32 island of the real graph does. Its weights are those of the source where these are at
hand, else as the artifact stores them.

Of an INT8 graph, a node that reads a DequantizeLinear behind a QuantizeLinear reads what was quantised when it is in float32.

Operators that only move values, and casts between float types, follow the node whose values they move.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from ...core import Feeds, Outputs
from ...graph import Graph
from ...runtime import EXACT, FLOAT, HALVES, Runner, as_float32, import_onnxruntime, reference_session
from .unrounded_weights import UnroundedWeights

FLOATS = (FLOAT, *HALVES)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PASSIVE = frozenset({QUANTIZE, DEQUANTIZE, "Constant", "Shape", "Size"})
FLAG = "bertc.put_back"
Maybe = ir.Node | None


@dataclasses.dataclass(frozen=True)
class RoundingChoice:
    """A choice in the session: exact where both nodes are in float32 (None stands for what is in float32 anyway)."""

    maker: Maybe
    reader: Maybe

    def exact(self, in_float32: frozenset[ir.Node]) -> bool:
        return all(node is None or node in in_float32 for node in (self.maker, self.reader))


class Float32SwitchRunner(Runner):
    """The session. `items` are the nodes that can run in float32, in the order of the graph; `fixed` counts the weights that are
    stored in INT8 alone, which cannot be."""

    def __init__(self, graph: Graph, originals: UnroundedWeights | None = None) -> None:
        super().__init__(graph.inputs, graph.outputs)
        switch = _SwitchGraph(graph, originals)
        self.items, self.fixed, self._edges, self._readers = switch.items, switch.fixed, switch.edges, switch.readers
        self.in_float32: frozenset[ir.Node] = frozenset()  # in the next run
        self._stored, self._originals = switch.stored, originals
        self._session, self._weights = reference_session(Graph(switch.model), arena=True)
        self._settings = import_onnxruntime().RunOptions()
        # What one sample took is given back before the next, of another shape.
        self._settings.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._unrounded: dict[str, bool] = {}  # which of the weights that have an original are fed as it

    def _run(self, feeds: Feeds) -> Outputs:
        flags = {name: np.array(edge.exact(self.in_float32)) for edge, name in self._edges.items()}
        names = [spec.name for spec in self.outputs]
        self._choose_weights()
        found = self._session.run(names, {**self._weights, **feeds, **flags}, self._settings)
        return dict(zip(names, found, strict=True))

    def _choose_weights(self) -> None:
        """Each weight is held once: the source's own where all its readers are in float32, else as it is stored."""
        for name, tensor in self._stored.items():
            unrounded = self._readers[name] <= self.in_float32
            if self._unrounded.get(name) is not unrounded:
                assert self._originals is not None
                self._weights.pop(name, None)  # before the other one is read
                self._weights[name] = self._originals.read(name) if unrounded else as_float32(tensor).numpy()
                self._unrounded[name] = unrounded


class _SwitchGraph:
    """The graph of the session, made of a copy. Items are nodes of the graph that was given."""

    def __init__(self, graph: Graph, originals: UnroundedWeights | None) -> None:
        self.model = graph.copy().model
        self.graph = self.model.graph
        nodes = list(self.graph)
        self.given = dict(zip(nodes, graph.model.graph, strict=True))
        self.half = {v: v.dtype for node in nodes for v in (*node.inputs, *node.outputs) if v is not None and v.dtype in HALVES}
        self.flags: dict[RoundingChoice, ir.Value] = {}
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.chosen: dict[tuple[ir.Value, RoundingChoice], ir.Value] = {}
        self.stored: dict[str, ir.TensorProtocol] = {}
        self.readers: dict[str, set[ir.Node]] = {}
        self.count, self.reader = 0, nodes[0] if nodes else None
        self.fixed = sum(1 for node in nodes if node.op_type == DEQUANTIZE and _makes(node, 0) is None)
        found = [node for node in nodes if self._is_item(node)]
        self._own, self._passing = frozenset(found), set[ir.Node]()
        for node in nodes:
            _in_float32(node)
        for node in nodes:
            self.reader = node
            self._read(node)
        self.reader = None
        for index, value in enumerate(self.graph.outputs):
            chosen = self._edge(value, None, self.half.get(value))
            if chosen is not value:
                self.graph.outputs[index] = self._named(value, chosen)
        self.items = tuple(self.given[node] for node in nodes if node in self._own or node in self._passing)
        self._feed_weights(originals)
        for value in (*self.graph.inputs, *self.graph.initializers.values()):
            if value.dtype in HALVES:
                value.const_value = as_float32(value.const_value) if value.const_value is not None else None
                value.type = ir.TensorType(FLOAT)
        self.edges = {edge: str(flag.name) for edge, flag in self.flags.items()}

    def _feed_weights(self, originals: UnroundedWeights | None) -> None:
        """Weights that have an original are fed, so that each run can choose."""
        for name, value in list(self.graph.initializers.items()):
            readers = self.readers.get(name, set())
            if originals is None or name not in originals.names or not readers or value in self.graph.outputs:
                continue
            assert value.const_value is not None
            self.stored[name] = value.const_value
            shape = ir.Shape(value.const_value.shape.numpy())
            value.const_value, value.type, value.shape = None, ir.TensorType(FLOAT), shape
            self.graph.initializers.pop(name)
            self.graph.inputs.append(value)

    def _is_item(self, node: ir.Node) -> bool:
        if _moves(node) or node.op_type in PASSIVE:
            return False
        halves = any(value in self.half for value in (*node.inputs, *node.outputs))
        return halves or any(_quantised(value) is not None for value in node.inputs)

    def _maker(self, value: ir.Value | None) -> Maybe:
        """The node that computes what a value holds; None for what is fed or stored."""
        while value is not None and (node := value.producer()) is not None:
            if not _moves(node):
                return node
            value = _moved(node)
        return None

    def _constant(self, value: ir.Value) -> ir.Value | None:
        """The constant that a value is, however it is moved, in the type it is stored in; None for what is computed."""
        while (node := value.producer()) is not None:
            if node.op_type == "Constant":
                return value
            moved = _moved(node) if _moves(node) else None
            if moved is None or (value in self.half and moved not in self.half):
                return None
            value = moved
        return value if value.const_value is not None else None

    def _read(self, node: ir.Node) -> None:
        """Give a node that computes its inputs as a choice."""
        if _moves(node):
            return
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in FLOATS:
                continue
            source = _quantised(value) if node in self._own else None
            if source is not None:
                plain = self._edge(source, node, self.half.get(source))
                switch = self._flag(RoundingChoice(None, self.given[node]))
                chosen = self._where(value, switch, plain, self._round(value, self.half[value]) if value in self.half else value)
                node.replace_input_with(index, chosen)
            else:
                node.replace_input_with(index, self._edge(value, node, self.half.get(value)))

    def _edge(self, value: ir.Value, reader: Maybe, half: ir.DataType | None) -> ir.Value:
        constant = self._constant(value)
        if constant is not None:
            if constant in self.half and reader is not None and reader in self._own:
                self.readers.setdefault(str(constant.name), set()).add(self.given[reader])
            return value
        maker = self._maker(value)
        half = half or next((self.half[v] for v in (maker.outputs if maker is not None else ()) if v in self.half), None)
        ends = [node for node in (maker, reader) if node is not None and node in self._own]
        passed = self._passed(value) if not ends else None
        if passed is not None:  # from float32 to float32, by way of a node in half
            node, half = passed
            self._passing.add(node)
            return self._choice(value, half, RoundingChoice(self.given[node], None))
        return value if half is None else self._exact_or_not(value, half, maker, reader)

    def _passed(self, value: ir.Value | None) -> tuple[ir.Node, ir.DataType] | None:
        """The last node that only moves what it reads and gives half precision, between a value and what computes it."""
        while value is not None and (node := value.producer()) is not None and _moves(node):
            if value in self.half:
                return node, self.half[value]
            value = _moved(node)
        return None

    def _exact_or_not(self, value: ir.Value, half: ir.DataType, maker: Maybe, reader: Maybe) -> ir.Value:
        """The value rounded, exact, or the choice between both.

        A maker in float32 and a reader in float32, one of them an item: a choice. A reader in half that is no item (a
        QuantizeLinear, what moves a type) always reads rounded values.
        """
        quantises = reader is not None and reader.op_type == QUANTIZE and value in self.half
        if quantises or (maker is not None and maker.op_type == DEQUANTIZE):
            return self._round(value, half)
        items = [self.given[node] if node is not None and node in self._own else None for node in (maker, reader)]
        if items == [None, None]:
            return value
        return self._choice(value, half, RoundingChoice(*items))

    def _choice(self, value: ir.Value, half: ir.DataType, edge: RoundingChoice) -> ir.Value:
        key = (value, edge)
        if key not in self.chosen:
            self.chosen[key] = self._where(value, self._flag(edge), value, self._round(value, half))
        return self.chosen[key]

    def _flag(self, edge: RoundingChoice) -> ir.Value:
        if edge not in self.flags:
            flag = ir.Value(name=f"{FLAG}.{len(self.flags)}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
            self.graph.inputs.append(flag)
            self.flags[edge] = flag
        return self.flags[edge]

    def _round(self, value: ir.Value, half: ir.DataType) -> ir.Value:
        if value not in self.rounded:
            narrow = self._node("Cast", [value], f"{value.name}.round", half, to=int(half))
            self.rounded[value] = self._node("Cast", [narrow], f"{value.name}.widen", FLOAT, to=int(FLOAT))
        return self.rounded[value]

    def _where(self, near: ir.Value, flag: ir.Value, exact: ir.Value, rounded: ir.Value) -> ir.Value:
        return self._node("Where", [flag, exact, rounded], f"{near.name}.choice", FLOAT)

    def _node(self, op_type: str, inputs: list[ir.Value], name: str, dtype: ir.DataType, **attributes: int) -> ir.Value:
        self.count += 1
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{name}.{self.count}")
        output = node.outputs[0]
        output.name, output.type = node.name, ir.TensorType(dtype)
        # Before its first reader, whose turn it is: what is made early is held long.
        self.graph.insert_before(self.reader, node) if self.reader is not None else self.graph.append(node)
        return output

    def _named(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """The new value under the name of an output."""
        old.name, new.name, new.shape = f"{old.name}.before", old.name, old.shape
        return new


def _makes(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return value.producer() if value is not None else None


def _quantised(value: ir.Value | None) -> ir.Value | None:
    """What a value was before QuantizeLinear and DequantizeLinear; None where it is not behind such a pair."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != DEQUANTIZE:
        return None
    before = _makes(node, 0)
    return before.inputs[0] if before is not None and before.op_type == QUANTIZE else None


def _moves(node: ir.Node) -> bool:
    """Whether a node gives on the values of one float input as they are (a cast between float types among them)."""
    if node.op_type == "Cast":
        return node.inputs[0] is not None and node.inputs[0].dtype in FLOATS and node.outputs[0].dtype in FLOATS
    if node.op_type not in EXACT or node.domain or node.op_type == "Constant":
        return False
    return sum(1 for value in node.inputs if value is not None and value.dtype in FLOATS) == 1


def _moved(node: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if value is not None and value.dtype in FLOATS), None)


def _in_float32(node: ir.Node) -> None:
    """Types and constants of a node that spell half precision spell float32."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype("float32")))
        if name in ("to", "dtype", "output_dtype") and attribute.value in [int(half) for half in HALVES]:
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
    for value in node.outputs:
        if value.dtype in HALVES:
            value.type = ir.TensorType(FLOAT)  # `value.dtype = ` would change a type object that clones share
