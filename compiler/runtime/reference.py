"""The truth for tests and verification: ONNX Runtime on the CPU, optimisations off.

ONNX Runtime CPU computes float16 in float32 and drops the casts, which hides overflow and rounding. So a half-precision graph
is run as a float32 graph in which every result that the typed graph would round is rounded for real: a Cast to the type and a
Cast back behind each such node. What this does not model: the order and width of accumulation inside an engine's kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core import Feeds, Outputs, Profile
from ..graph import Graph
from .cuda_operators import spell_cuda_operators
from .plugin_operators import spell_plugins
from .runner import Runner
from .session import import_onnxruntime, open_session

FLOAT = ir.DataType.FLOAT
FED = (FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8)
LARGE = 2**14  # bytes
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Operators that only move or choose values: what goes in rounded comes out rounded.
EXACT = frozenset(
    [
        "Reshape",
        "Transpose",
        "Gather",
        "GatherND",
        "GatherElements",
        "Slice",
        "Concat",
        "Split",
        "Unsqueeze",
        "Squeeze",
        "Expand",
        "Identity",
        "Where",
        "Flatten",
        "Tile",
        "Pad",
        "Constant",
        "ConstantOfShape",
        "Relu",
        "Max",
        "Min",
        "Clip",
        "Neg",
        "Abs",
        "ReduceMax",
        "ReduceMin",
        "MaxPool",
        "ScatterND",
        "ScatterElements",
    ]
)


class ReferenceRunner(Runner):
    """Runs a Graph with emulated rounding. The session is made once; it reads the weights where the graph holds them."""

    def __init__(self, graph: Graph, profiles: Sequence[Profile] = ()) -> None:
        super().__init__(graph.inputs, graph.outputs, profiles)
        self._session, self._weights = reference_session(emulate_rounding(graph))

    def _run(self, feeds: Feeds) -> Outputs:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, {**self._weights, **feeds}), strict=True))


def reference_session(graph: Graph, arena: bool = False) -> tuple[Any, dict[str, np.ndarray]]:
    """An ONNX Runtime CPU session over a graph, optimisations off, and the weights to feed it beside the inputs.

    Large weights are inputs of the session: ONNX Runtime reads a numpy array where it lies, and would copy an initializer, once
    to read it and once more to pack it. An `arena` keeps what the largest sample took; without one, many values of many sizes
    leave holes. Raises Missing without onnxruntime, BuildFailed when it refuses the graph.
    """
    options = reference_options()
    options.enable_cpu_mem_arena = arena
    copy, weights = graph.copy().model, {}
    spell_cuda_operators(copy)
    spell_plugins(copy)
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < LARGE or tensor.dtype not in FED:
            continue  # what is small may be a shape, which some operators want to know beforehand
        if value.is_graph_input() or value.is_graph_output():
            continue
        weights[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value, value.type, value.shape = None, ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        copy.graph.initializers.pop(name)
        copy.graph.inputs.append(value)
    ir.external_data.load_to_model(copy)  # ONNX Runtime would look for a small weight's file in the current directory
    return open_session(ir.to_proto(copy).SerializeToString(), options), weights


def reference_options() -> Any:
    """SessionOptions with all optimisations off. Raises Missing without onnxruntime."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it refuses is raised, and said once
    # Threads that spin while they wait take the cores from PyTorch, which runs in turns with this session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def release_pages(tensor: ir.TensorProtocol) -> None:
    """Let go of the pages of a file that a tensor is read from; it can be read again."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # somebody holds an array of it
            tensor.release()


def emulate_rounding(graph: Graph, rounded: bool = True) -> Graph:
    """A float32 graph that rounds where `graph` does; `graph` itself when it holds no float16 or bfloat16.

    Not `rounded`: the same in float32 throughout, with the weights as they are stored.
    """
    if not any(v.dtype in HALVES for v in _values(graph)):
        return graph
    copy = graph.copy()
    for node in list(copy.model.graph.all_nodes()):
        _emulate_node(node, rounded)
    for inner in (copy.model.graph, *copy.model.graph.subgraphs()):
        for value in inner.initializers.values():
            if value.dtype in HALVES and value.const_value is not None:
                value.const_value = as_float32(value.const_value)
                value.type = ir.TensorType(FLOAT)
        _emulate_borders(inner)
    return copy


def _values(graph: Graph) -> list[ir.Value]:
    made = [v for node in graph.model.graph.all_nodes() for v in node.outputs]
    graphs = [graph.model.graph, *graph.model.graph.subgraphs()]
    return [*(v for each in graphs for v in (*each.inputs, *each.initializers.values())), *made]


def as_float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A half-precision tensor in float32, made when it is read."""

    def load() -> ir.TensorProtocol:
        array = tensor.numpy().astype("float32")
        release_pages(tensor)
        return ir.tensor(array, name=tensor.name)

    return ir.LazyTensor(load, dtype=FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=False)


def _emulate_node(node: ir.Node, rounded: bool) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype("float32")))
    for value in node.outputs:
        half = value.dtype
        if half not in HALVES:
            continue
        value.type = ir.TensorType(FLOAT)  # `value.dtype = ` would change a type object that clones share
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
        left_out = not (value.uses() or value.is_graph_output())
        if rounded and node.op_type not in EXACT and not left_out:
            _round_behind(node, value, half)


def _round_behind(node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    """value -> Cast(half) -> Cast(float32) -> every former reader of value."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    narrow = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(half))], name=f"{value.name}.round")
    wide = ir.Node("", "Cast", narrow.outputs, [ir.AttrInt64("to", int(FLOAT))], name=f"{value.name}.widen")
    narrow.outputs[0].type, wide.outputs[0].type = ir.TensorType(half), ir.TensorType(FLOAT)
    narrow.outputs[0].name, wide.outputs[0].name = f"{value.name}.rounded", f"{value.name}.widened"
    wide.outputs[0].shape = value.shape
    for index, output in enumerate(graph.outputs):
        if output is value:
            value.name, wide.outputs[0].name = f"{value.name}.exact", value.name
            graph.outputs[index] = wide.outputs[0]
    value.replace_all_uses_with(wide.outputs[0])
    narrow.replace_input_with(0, value)
    graph.insert_after(node, [narrow, wide])


def _emulate_borders(graph: ir.Graph) -> None:
    """Half inputs and outputs become float32: feeds and results are exchanged in numpy's float32."""
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in HALVES:
            value.type = ir.TensorType(FLOAT)
