"""Bring an old graph to the opset of the canonical bodies, before anything is matched.

onnx's own version converter does it, operator by operator (onnx/version_converter; onnxscript's, which works on onnx_ir, begins
at opset 18). It takes a protobuf, where weights of 2 GB do not fit, and forgets metadata: so it is given the graph without its
weights, and what comes back is given them again, and each node its metadata, by name. No weight is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from ..core import NotFused, first_line
from .model import Graph
from .provenance import fill_origins
from .scopes import name_apart
from .subgraph import Refused, model_from_nodes

# Elements. Adapters read axes, sizes and scales, which are fewer; larger tensors are inputs of the message, without numbers.
KEPT = 64


@dataclasses.dataclass(frozen=True)
class Upgraded:
    """A graph of opset 20 or newer, and what was done to make it so (nothing where it was one)."""

    graph: Graph
    notes: tuple[str, ...] = ()


def upgrade_opset(graph: Graph) -> Upgraded:
    """A graph that computes the same at opset 20 or newer; `graph` is not changed, its weights are shared, not read.

    Raises NotFused naming the node and the operator that cannot be converted.
    """
    if graph.opset >= OPSET:
        return Upgraded(graph)
    model = graph.copy().model
    _inline(model, graph.opset)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)
    name_apart(model)  # what comes back is known by name
    common.ShapeInferencePass()(model)  # where it does not know a rank, an adapter writes a detour
    for node in model.graph.all_nodes():
        _check_known(node, graph.opset)
    converted = _converted(model, graph.opset).graph
    _restore(model.graph, converted)
    model.graph = converted
    model.ir_version = max(model.ir_version or 0, 9)  # of opset 20
    return Upgraded(Graph(model), (f"opset converted from {graph.opset} to {OPSET} for fusion",))


def _inline(model: ir.Model, opset: int) -> None:
    """The converter passes over local functions."""
    try:
        common.InlinePass()(model)
    except Exception as error:
        why = f"its functions cannot be inlined: {short_reason(error)}"
        raise NotFused(f"opset {opset} cannot be converted to {OPSET}: {why}") from error


def _check_known(node: ir.Node, opset: int) -> None:
    """The converter lets operators through that were taken out of the standard (Upsample)."""
    from onnx import defs

    if node.domain not in ("", "ai.onnx"):
        return
    if not defs.has(node.op_type, OPSET, "") or defs.get_schema(node.op_type, OPSET, "").deprecated:
        raise _refused(node, opset, f"opset {OPSET} has no such operator")


def _converted(model: ir.Model, opset: int) -> ir.Model:
    """The converted model; NotFused naming the first node that does not convert by itself."""
    import onnx
    from onnx import version_converter

    message = _message(model)
    try:
        made = ir.from_proto(version_converter.convert_version(message, OPSET))
        name_apart(made)  # of the values that it adds, those of two branches may have one name
        onnx.checker.check_model(ir.to_proto(made))
    except Exception as error:  # whatever onnx's C++ throws
        for node in model.graph:
            _try_alone(node, model, opset)
        raise NotFused(f"opset {opset} cannot be converted to {OPSET}: {short_reason(error)}") from error
    return made


def _try_alone(node: ir.Node, model: ir.Model, opset: int) -> None:
    """Raise NotFused when the converter refuses a graph of this node alone."""
    from onnx import version_converter

    try:
        alone, _ = model_from_nodes([node], node.outputs, dict(model.opset_imports), model.ir_version or 8)
        version_converter.convert_version(_message(alone), OPSET)
    except Refused:
        return  # of no known type, or with a subgraph
    except Exception as error:
        raise _refused(node, opset, short_reason(error)) from error


def _refused(node: ir.Node, opset: int, why: str) -> NotFused:
    return NotFused(f"opset {opset} cannot be converted to {OPSET}: {node.op_type} {node.name!r}: {why}")


def short_reason(error: Exception) -> str:
    return first_line(error).rpartition(" failed: ")[2][:300]  # without the place in onnx's source


def _message(model: ir.Model) -> Any:
    """The model as a protobuf in which larger initializers are inputs, behind the model's own."""
    bare = model.clone()
    graph = bare.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        if tensor.size > KEPT:
            value.const_value = None
            del graph.initializers[str(value.name)]
            if not value.is_graph_input():
                graph.inputs.append(value)
    return ir.to_proto(bare)


def _restore(old: ir.Graph, new: ir.Graph) -> None:
    """Give the converted graph the weights, inputs, outputs, metadata and names of the one it was made of."""
    del new.inputs[len(old.inputs) :]
    values = {str(value.name): value for value in new.initializers.values()}
    for node in new.all_nodes():
        values |= {str(value.name): value for value in node.inputs if value is not None and value.producer() is None}
    for name, value in old.initializers.items():
        if name in values:
            values[name].const_value = value.const_value
            new.register_initializer(values[name])
    nodes = {node.name: node for node in old.all_nodes()}
    made = {value.name: value for node in old.all_nodes() for value in node.outputs}
    for node in new.all_nodes():
        node.metadata_props.update(nodes[node.name].metadata_props if node.name in nodes else {})
        for value in node.outputs:
            if value.name in made:
                _as_before(value, made[value.name])
    for value, before in zip((*new.inputs, *new.outputs), (*old.inputs, *old.outputs), strict=True):
        _as_before(value, before)
    fill_origins(new)
    new.metadata_props.update(old.metadata_props)
    new.name, new.doc_string = old.name, old.doc_string


def _as_before(value: ir.Value, before: ir.Value) -> None:
    value.type, value.shape = before.type, before.shape
    value.metadata_props.update(before.metadata_props)


OPSET = 20  # Gelu is of opset 20, Split with num_outputs and ReduceMean with an axes input of 18
