"""Rewrite a float32 graph so that most of it is typed float16 or bfloat16.

Each node is decided once (`_islands`): half, or an island that stays in float32 with a reason. Then every float edge is
given the type its reader wants (`_Casts`): a second, converted initializer, or one shared Cast behind the producer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from ..core import InputError
from ..graph import Graph, drop_unused_initializers
from ._half import HalfType
from ._islands import IslandDecision, decide_islands
from ._kernels import Kernels
from ._plan import Clamp, Island, Plan, Typed
from ._value_ranges import Evidence

FLOAT = ir.DataType.FLOAT


def type_half(graph: Graph, half: HalfType, evidence: Evidence | None = None, kernels: Kernels | None = None) -> Typed:
    """Type `graph` in `half`: inputs and outputs keep their types, weights of half nodes are stored in half.

    With evidence the float32 graph runs on its samples, and the measured values decide as well. `kernels` are
    those of the compiler. Raises InputError when a value
    has no known type (run shape inference first), DataError when the graph does not run on a sample.
    """
    _require_types(list(graph.model.graph.all_nodes()))
    typed = write_typed(graph, half, decide_islands(graph, half, evidence, kernels))
    return dataclasses.replace(typed, plan=dataclasses.replace(typed.plan, evidence=evidence.name if evidence else ""))


def write_typed(graph: Graph, half: HalfType, decided: IslandDecision) -> Typed:
    """Type a copy of `graph` as it was decided for its nodes and constants."""
    copy = graph.copy()
    before, nodes = list(graph.model.graph.all_nodes()), list(copy.model.graph.all_nodes())
    islands = {node: decided.islands[old] for old, node in zip(before, nodes, strict=True) if old in decided.islands}
    clamps = {copy.model.graph.initializers[str(value.name)]: clamp for value, clamp in decided.clamps.items()}
    casts = _Casts(copy.model.graph, half, clamps)
    for node in nodes:
        if node not in islands:
            _retype_outputs(node, half)
    for node in nodes:
        wanted = FLOAT if node in islands else half.dtype
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, half.dtype):
                node.replace_input_with(index, casts.of(value, wanted))
    _restore_outputs(copy.model.graph, half, casts)
    drop_unused_initializers(copy.model.graph)  # float32 originals that only half nodes read
    floats = sum(1 for n in nodes if n not in islands and _has_type(n, half.dtype))
    listed = tuple(_named(island, node) for node, island in islands.items() if island.reason)
    changed = tuple(Clamp(str(v.name), was, half.mask, reason) for v, (was, reason) in clamps.items())
    return Typed(copy, Plan(half.mode, floats, listed, changed, casts.count, notes=decided.notes))


def _named(island: Island, node: ir.Node) -> Island:
    # Three digits: the last ones of a measurement differ from machine to machine, and a manifest must not.
    measured = None if island.measured is None else float(f"{island.measured:.3g}")
    return dataclasses.replace(island, node=str(node.name), op=node.op_type, measured=measured)


def _require_types(nodes: list[ir.Node]) -> None:
    for node in nodes:
        for value in node.outputs:
            if value.dtype is None and value.uses():
                made_by = f"output of {node.op_type} {node.name!r}"
                raise InputError(f"the type of {value.name!r} ({made_by}) is unknown: run shape inference on the graph")


def _has_type(node: ir.Node, dtype: ir.DataType) -> bool:
    return any(v is not None and v.dtype == dtype for v in (*node.inputs, *node.outputs))


def _retype_outputs(node: ir.Node, half: HalfType) -> None:
    """Outputs become half, and with them the attributes that spell a type or hold a float tensor."""
    for value in node.outputs:
        if value.dtype == FLOAT:
            value.type = ir.TensorType(half.dtype)  # `value.dtype = ` would change a type object that clones share
    for name, attribute in list(node.attributes.items()):
        if name in ("to", "dtype", "output_dtype") and attribute.value == int(FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(half.dtype))
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == FLOAT:
            node.attributes[name] = ir.AttrTensor(name, convert(attribute.as_tensor(), half.dtype))


def convert(tensor: ir.TensorProtocol, dtype: ir.DataType, clamp: float | None = None) -> ir.TensorProtocol:
    """`tensor` rounded to `dtype` (to nearest, ties to even); values at or below `clamp` become `clamp`.

    Lazy: a model's weights are converted one at a time while they are written, not held twice.
    """

    def load() -> ir.TensorProtocol:
        array = tensor.numpy()
        if clamp is not None:
            array = np.maximum(array, np.float32(clamp))
        with np.errstate(over="ignore"):
            return ir.tensor(array.astype(dtype.numpy()), name=tensor.name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=False)


class _Casts:
    """Gives each float value in the type a reader wants, each conversion made once."""

    def __init__(self, graph: ir.Graph, half: HalfType, clamps: dict[ir.Value, tuple[float, str]]) -> None:
        self.graph, self.half, self.clamps = graph, half, clamps
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.count = 0

    def of(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if value.dtype == wanted:
            return value
        if (value, wanted) not in self.made:
            make = self._initializer if value.is_initializer() and not value.is_graph_input() else self._cast
            self.made[value, wanted] = make(value, wanted)
        return self.made[value, wanted]

    def _new_value(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        suffix = "fp32" if wanted == FLOAT else self.half.mode
        return ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=ir.TensorType(wanted))

    def _initializer(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        assert value.const_value is not None, "an initializer without a value was refused at load"
        new = self._new_value(value, wanted)
        clamp = self.half.mask if value in self.clamps else None
        new.const_value = convert(value.const_value, wanted, clamp)
        new.const_value.name = new.name
        self.graph.register_initializer(new)
        return new

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        new = self._new_value(value, wanted)
        producer = value.producer()
        near = producer or next((use.node for use in value.uses()), None)  # of an input: its first reader's
        node = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", int(wanted))], outputs=[new], name=f"{new.name}.cast",
            metadata_props=dict(near.metadata_props) if near else {},
        )  # fmt: skip
        self._owner(value).insert_after(producer, node) if producer else self._prepend(node)
        self.count += 1
        return new

    def _owner(self, value: ir.Value) -> ir.Graph:
        producer = value.producer()
        owner = producer.graph if producer else None
        return owner if isinstance(owner, ir.Graph) else self.graph

    def _prepend(self, node: ir.Node) -> None:
        first = next(iter(self.graph), None)
        self.graph.insert_before(first, node) if first else self.graph.append(node)


def _restore_outputs(graph: ir.Graph, half: HalfType, casts: _Casts) -> None:
    """Graph outputs keep their name and float32: the half value is renamed and cast back."""
    for index, value in enumerate(graph.outputs):
        if value.dtype != half.dtype:
            continue
        name = value.name
        value.name = f"{name}.{half.mode}"
        back = casts.of(value, FLOAT)
        back.name = name
        graph.outputs[index] = back
