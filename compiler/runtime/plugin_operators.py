"""Nodes that a compiler takes for a plugin of ours: what they mean stands in their metadata, and is run as standard ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import onnx_ir as ir
from msgspec import Meta

from ..core import ArtifactError, parse_json
from ..graph import DOMAIN, MASK_LOW
from ..ops import (
    ATTRIBUTES,
    BODIES,
    FLOAT,
    Body,
    add_all,
    check_attributes,
    constant,
    given_inputs,
    replace_node,
    scaled_dot_product,
    taken_names,
)

PLUGIN_DOMAIN = "bertc.plugins"
# Metadata: {"operator", "slots": which of its `count` inputs are there; "attributes" where they are not the node's, "turned":
# inputs that the kernel has transposed, and how}
PLUGIN = "bertc.plugin"


class Meaning(TypedDict):
    """The metadata of a node: which of `count` inputs of the operator are there."""

    operator: str
    count: Annotated[int, Meta(ge=0, le=64)]
    slots: list[Annotated[int, Meta(ge=0, le=63)]]
    attributes: NotRequired[dict[str, int | float | str | list[int | float | str]] | None]
    turned: NotRequired[dict[str, list[int]] | None]


def spell_plugins(model: ir.Model) -> None:
    """In place: the canonical body of the operator that each plugin computes."""
    nodes = [node for node in model.graph.all_nodes() if node.domain == PLUGIN_DOMAIN]
    taken = taken_names(model) if nodes else set()
    for node in nodes:
        replace_node(model, node, _meaning, taken)


def _meaning(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    where = f"its metadata {PLUGIN}"  # replace_node names the node
    meant = parse_json(node.metadata_props.get(PLUGIN, ""), Meaning, where=where, error=ArtifactError)
    slots, known = meant["slots"], {**BODIES, **OWN}
    if meant["operator"] not in known or len(slots) != len(node.inputs) or max(slots, default=0) >= meant["count"]:
        raise ArtifactError(f"{where} is damaged: an operator that bertc does not have, or inputs that the node has not")
    given: list[ir.Value | None] = [None] * meant["count"]
    for slot, value in zip(slots, node.inputs, strict=True):
        perm = (meant.get("turned") or {}).get(str(slot))
        if perm is not None and sorted(perm) != list(range(len(perm))):
            raise ArtifactError(f"{where} is damaged: 'turned' is no order of axes")
        given[slot] = value if perm is None else op.Transpose(value, perm=perm)
    stated = meant.get("attributes")
    attributes = list(node.attributes.values()) if stated is None else _attributes(stated, where)
    stand_in = ir.Node(DOMAIN, meant["operator"], given, attributes, num_outputs=len(node.outputs), name=node.name)
    check_attributes(stand_in)
    made = known[meant["operator"]](op, stand_in)
    for index in range(len(given)):
        stand_in.replace_input_with(index, None)  # it is no node of the graph
    return made


def _attributes(stated: Mapping[str, Any], where: str) -> Sequence[ir.Attr]:
    """As the node would hold them: JSON has one kind of number, and writes 1.0 as 1."""
    real = {name: float(v) if ATTRIBUTES.get(name, ("",))[0] == FLOAT and isinstance(v, int) else v for name, v in stated.items()}
    try:
        return ir.convenience.convert_attributes(real)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{where} is damaged: its attributes are none that a node has: {error}") from error


def packed_tokens(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """qkv [T,3,h,d], ends [B+1], bias (none yet), keys [T]? -> [T,h,d]: rows padded to the longest, attended, their tokens."""
    qkv, ends, _, keys = given_inputs(node, 4, 2)
    starts = op.Slice(ends, _ints(op, 0), _ints(op, -1))
    lengths = op.Sub(op.Slice(ends, _ints(op, 1), op.Shape(ends)), starts)
    places = op.Range(_int(op, 0), op.ReduceMax(lengths, keepdims=0), _int(op, 1))
    inside = op.Less(op.Unsqueeze(places, _ints(op, 0)), op.Unsqueeze(lengths, _ints(op, 1)))
    last = op.Sub(op.Shape(qkv, start=0, end=1), _ints(op, 1))
    index = op.Min(op.Add(op.Unsqueeze(starts, _ints(op, 1)), op.Unsqueeze(places, _ints(op, 0))), last)
    q, k, v = op.Split(op.Gather(qkv, index), axis=2, num_outputs=3, _outputs=3)  # [B,L,1,h,d]
    q, k, v = (op.Transpose(op.Squeeze(t, _ints(op, 2)), perm=perm) for t, perm in ((q, SPLIT), (k, (0, 2, 3, 1)), (v, SPLIT)))
    seen = op.Where(inside, constant(op, 0.0), constant(op, MASK_LOW))
    mask = op.Unsqueeze(seen if keys is None else add_all(op, op.Gather(keys, index), seen), _ints(op, 1, 2))
    context = op.Transpose(scaled_dot_product(op, q, k, v, mask, node.attributes.get_float("scale", 1.0)), perm=SPLIT)
    flat = op.Reshape(context, op.Concat(_ints(op, -1), op.Shape(qkv, start=2), axis=0))
    return [op.Gather(flat, op.Squeeze(op.NonZero(op.Reshape(inside, _ints(op, -1))), _ints(op, 0)))]


def _ints(op: Any, *values: int) -> ir.Value:
    return constant(op, list(values), np.int64)


def _int(op: Any, value: int) -> ir.Value:
    return constant(op, value, np.int64)


SPLIT = (0, 2, 1, 3)
OWN: Mapping[str, Body] = {"packed tokens": packed_tokens}  # kernels that are a part of a canonical operator
