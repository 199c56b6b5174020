"""`bertc` operators as standard ONNX: each replaced by its body or a target's lowering, or kept as a function of the file.

The bodies stand in `bodies/`, one file an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ..core import CheckFailed, InputError, SourceError, counted, did_you_mean
from ..graph import DOMAIN, OPSET, ORIGIN, WEIGHT_ORIGINS, Graph, spread_origin
from .builder import Body, Builder, Speller
from .declared import check_attributes, of_node, told
from .registry import BODIES


def expand(graph: Graph, lowerings: Mapping[str, Body] = {}) -> Graph:
    """A copy with every `bertc` node replaced by its lowering from the table, else by its canonical body.

    New nodes and values are named after the node and the output they come from, and carry the node's metadata. Outputs keep their
    type and shape; the other new values get theirs from ONNX's shape inference (values of foreign operators have none unless the
    lowering sets them). Raises InputError for an opset below 20, SourceError for an operator that nobody
    defines.
    """
    copy = _copy_at_opset(graph)
    known = {value.name: (value.type, value.shape) for node in copy.model.graph.all_nodes() for value in node.outputs}
    inline(copy.model, lowerings)
    _infer(copy.model, known)
    return copy


def _copy_at_opset(graph: Graph) -> Graph:
    if graph.opset < OPSET:
        raise InputError(
            f"the graph has opset {graph.opset}, bertc operators need {OPSET}: convert it first (onnx.version_converter)"
        )
    return graph.copy()


def inline(model: ir.Model, lowerings: Mapping[str, Body] = {}) -> None:
    """What `expand` does, in place and without shape inference."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_identifier() not in model.functions]
    taken = taken_names(model)
    for node in nodes:
        check_attributes(node)
        replace_node(model, node, lowerings.get(node.op_type) or _body(node), taken)
    model.opset_imports.pop(DOMAIN, None)
    if any(function.domain == DOMAIN for function in model.functions.values()):
        model.opset_imports[DOMAIN] = 1


def taken_names(model: ir.Model) -> set[str | None]:
    """The names of nodes, values and weights."""
    taken = {node.name for node in model.graph.all_nodes()} | set(model.graph.initializers)
    return taken | {value.name for node in model.graph.all_nodes() for value in node.outputs}


def _body(node: ir.Node) -> Body:
    if node.op_type not in BODIES:
        raise SourceError(f"{told(node)} has an unknown operator{did_you_mean(node.op_type, BODIES)}")
    return BODIES[node.op_type]


def replace_node(model: ir.Model, node: ir.Node, body: Body, taken: set[str | None]) -> None:
    """Put a body in the place of a node; new names are added to those `taken`."""
    op = Builder()
    with of_node(node):
        made = list(body(op, node))
    if len(made) != len(node.outputs) or any(value.producer() not in op.nodes for value in made):
        wanted, found = counted(len(node.outputs), "output"), f"it gave {len(made)}, of {len(op.nodes)} new nodes"
        raise CheckFailed(f"what stands for {told(node)} must make {wanted} of its own; {found}")
    for value in op.initializers:
        value.name = free_name(f"{node.name}/{value.name}", taken)
        model.graph.register_initializer(value)
    for new in op.nodes:
        new.name = free_name(f"{node.name}/{new.op_type}", taken)
        new.metadata_props.update({k: v for k, v in node.metadata_props.items() if k not in (ORIGIN, WEIGHT_ORIGINS)})
        for value in new.outputs:
            value.name = free_name(f"{node.outputs[0].name}/{new.op_type}", taken)
        if new.domain:
            model.opset_imports.setdefault(new.domain, 1)
    spread_origin(node, op.nodes)
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], op.nodes, node.outputs, made)


def free_name(name: str, taken: set[str | None]) -> str:
    """The name, with the smallest number behind it that makes it new."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def _infer(model: ir.Model, known: Mapping[str | None, tuple[Any, Any]]) -> None:
    """Types and shapes of new values; what was known stays as it was, named dimensions too."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in known:
                kind, shape = known[value.name]
                value.type, value.shape = kind or value.type, shape if shape is not None else value.shape


def as_functions(graph: Graph) -> Graph:
    """The fused graph as a valid ONNX model: one local function per operator, so that it runs on any ONNX runtime.

    Where a model uses an operator in several variants (attributes, absent inputs, outputs), the second function is named
    `FusedLinear_v2` and so on. Not by `overload`: the ONNX reference evaluator and TensorRT's parser look functions up by name
    alone, and would silently give every node the last variant. Weights are shared, and stay in the main graph.
    """
    copy = _copy_at_opset(graph)
    given = set(copy.model.functions)  # a file that was fused before brings its own
    names: dict[Any, str] = {}
    variants: dict[str, int] = {}
    for node in list(copy.model.graph.all_nodes()):
        if node.domain != DOMAIN or node.op_identifier() in given:
            continue
        key = _variant(node)
        if key not in names:
            variants[node.op_type] = count = variants.get(node.op_type, 0) + 1
            names[key] = node.op_type if count == 1 else f"{node.op_type}_v{count}"
            function = _function(node, names[key])
            copy.model.functions[function.identifier()] = function
        node.op_type = names[key]
        node.metadata_props.pop(WEIGHT_ORIGINS, None)  # for lowering alone
    if names:
        copy.model.opset_imports[DOMAIN] = 1
    return copy


def _variant(node: ir.Node) -> Any:
    """What a body may depend on."""
    attributes = tuple(sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()))
    return node.op_type, attributes, tuple(value is not None for value in node.inputs), len(node.outputs)


def _function(node: ir.Node, name: str) -> ir.Function:
    """The body over formal inputs. Attributes are in the body already; declared, the calling node may keep them to be read."""
    formal = [ir.Value(name=f"x{i}") for i in range(len(node.inputs))]
    given = [value if actual is not None else None for value, actual in zip(formal, node.inputs, strict=True)]
    stand_in = ir.Node(DOMAIN, node.op_type, given, list(node.attributes.values()), num_outputs=len(node.outputs), name=name)
    op = Speller()
    check_attributes(node)
    with of_node(node):
        made = _body(node)(op, stand_in)
    for index in range(len(given)):
        stand_in.replace_input_with(index, None)  # it is no node of the body
    for index, value in enumerate(v for new in op.nodes for v in new.outputs):
        value.name = f"v{index}"
    body = ir.Graph(formal, list(made), nodes=op.nodes, opset_imports={"": OPSET}, name=name)
    declared = [ir.Attr(key, attribute.type, None) for key, attribute in node.attributes.items()]
    return ir.Function(DOMAIN, name, graph=body, attributes=declared)
