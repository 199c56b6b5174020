"""Swaps of batch and length ([B,S,H] <-> [S,B,H]) moved towards the outputs until they meet their opposite, and both go.

torch's transformer layers run length first unless they are told otherwise, the canonical attention runs batch first. Between two
attentions every operator works on either layout, so one pass in order takes a whole encoder to one layout. Every step is exact.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .model import DOMAIN, Graph

SWAP = (1, 0, 2)
ELEMENTWISE = frozenset("Add Sub Mul Div Pow Gelu Erf Tanh Sigmoid Relu Cast Identity Neg Abs Sqrt Exp".split())
# What works on the last axis of its first input, by weights alone.
BY_CHANNELS = frozenset("LayerNormalization MatMul".split())
FUSED_BY_CHANNELS = frozenset("FusedLinear FusedBiasGelu FusedGelu".split())


def sink_swaps(graph: Graph) -> Graph:
    """A copy without the swaps that another undoes; `graph` itself where it has none."""
    if not any(_is_swap(node) for node in graph.model.graph):
        return graph
    copy = graph.copy()
    main = copy.model.graph
    for node in list(main):
        for index, value in enumerate(node.inputs):
            if (source := _unswapped(_unswapped(value))) is not None:
                node.replace_input_with(index, source)
        if _either_layout(node):
            _move_behind(main, node)
    for index, value in enumerate(main.outputs):
        source = _unswapped(_unswapped(value))
        if source is not None and not (source.is_graph_input() or source.is_graph_output() or source.producer() is None):
            value.name, source.name = f"{value.name}.swapped", value.name
            source.shape = value.shape
            main.outputs[index] = source
    RemoveUnusedNodesPass()(copy.model)
    return copy


def _is_swap(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", [])) == SWAP


def _unswapped(value: ir.Value | None) -> ir.Value | None:
    """What a value is the swap of, or None."""
    maker = value.producer() if value is not None else None
    return maker.inputs[0] if maker is not None and _is_swap(maker) else None


def _either_layout(node: ir.Node) -> bool:
    """Whether the operator works on swapped inputs as on others, and has some."""
    if len(node.outputs) != 1 or not any(_unswapped(value) is not None for value in node.inputs):
        return False
    first, *rest = node.inputs
    if node.op_type in ELEMENTWISE and not node.domain:
        return all(_unswapped(value) is not None or _is_vector(value) for value in node.inputs)
    by_channels = FUSED_BY_CHANNELS if node.domain == DOMAIN else BY_CHANNELS if not node.domain else frozenset()
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    weights = all(value is None or value.const_value is not None for value in rest)
    return node.op_type in by_channels and _unswapped(first) is not None and weights


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) < 2


def _move_behind(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if (source := _unswapped(value)) is not None:
            node.replace_input_with(index, source)
    out = node.outputs[0]
    users = list(out.uses())
    swap = ir.Node("", "Transpose", [out], [ir.AttrInt64s("perm", SWAP)], name=f"{node.name}.swap")
    swap.metadata_props.update(node.metadata_props)
    behind = swap.outputs[0]
    # A name stands for numbers (captured activations are found by it): it goes to what still has them.
    behind.name, behind.type, behind.shape = out.name, out.type, out.shape
    out.name, out.shape = (
        f"{out.name}.swapped",
        None if out.shape is None else ir.Shape([out.shape[1], out.shape[0], *out.shape[2:]]),
    )
    graph.insert_after(node, swap)
    for user, index in users:
        user.replace_input_with(index, behind)
    for index, output in enumerate(graph.outputs):
        if output is out:
            graph.outputs[index] = behind
