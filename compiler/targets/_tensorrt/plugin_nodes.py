"""Fused operators as plugins of TensorRT: kernels of `bertc.plugins.kernels`, compiled into the engine (`--plugin`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import InputError, did_you_mean
from ...graph import Graph
from ...ops import EPSILON, Body, padded_inputs
from ...ops import constant as made_constant
from ...precision import Kernels
from ...runtime import PLUGIN, PLUGIN_DOMAIN
from .plugin_attention import packed_attention
from .plugin_conv import conv1d_gelu
from .plugin_writer import LEFT, TENSORS, known_width, plugin

PRECISIONS = ("fp32", "fp16", "bf16")


def require_known(names: Sequence[str], precision: str) -> str | None:
    """Why these operators cannot be plugins; None where they can."""
    for name in names:
        if name not in KNOWN:
            return f"--plugin {name}: no such plugin{did_you_mean(name, tuple(KNOWN))}"
    if precision not in PRECISIONS:
        return f"--plugin with {precision}: the kernels take {', '.join(PRECISIONS)}; build one of them, or without plugins"
    return None


def bodies(names: Sequence[str]) -> Mapping[str, Body]:
    """The lowerings of the operators that the named kernels compute."""
    return {operator: body for name in names for operator, body in KNOWN[name].items()}


def require_used(names: Sequence[str], graph: Graph, lowered: Graph) -> None:
    """InputError for a plugin that computes nothing of a graph: whoever asked for it would believe that it does."""
    launches = {each["launch"] for each in used(lowered)}
    for name in names:
        if launches.isdisjoint(KERNELS_OF.get(name, (name,))):
            wanted = KNOWN[name]
            there = any(node.op_type in wanted for node in graph.model.graph.all_nodes())
            why = "; ".join(not_used(lowered)) if there else f"the graph has no {' and no '.join(wanted)}"
            raise InputError(f"--plugin {name} would compute nothing: {why}; build without it")


def not_used(lowered: Graph) -> list[str]:
    """Where an operator that was asked for is not a plugin, and why."""
    found = (node.metadata_props[LEFT] for node in lowered.model.graph.all_nodes() if LEFT in node.metadata_props)
    return list(dict.fromkeys(found))


def lacking(node: ir.Node, opset: int, half: ir.DataType) -> str | None:
    """Why TensorRT has no kernel of a node in a type: it knows no foreign operator but these."""
    foreign = node.domain not in ("", "ai.onnx", PLUGIN_DOMAIN)
    return f"TensorRT knows no operator of domain {node.domain!r}" if foreign else None


KERNELS = Kernels(lacking)


def used(graph: Graph) -> list[dict[str, Any]]:
    """What the compiler has to register: {"launch", "present"} of each plugin of a graph, each once."""
    nodes = (node for node in graph.model.graph.all_nodes() if node.domain == PLUGIN_DOMAIN)
    found = {node.op_type: json.loads(node.metadata_props[PLUGIN]) for node in nodes}
    return [{name: found[plugin][name] for name in ("launch", "present")} for plugin in sorted(found)]


def skip_layernorm(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """Rows of two dimensions, as the kernel takes them; the two Reshapes move nothing."""
    rms = node.op_type == "FusedSkipRmsNorm"
    x, skip, bias, gamma, beta = padded_inputs(node, 5)
    given = {"x": _rows(op, x), "skip": _rows(op, skip), "bias": bias, "gamma": gamma, **({} if rms else {"beta": beta})}
    made = plugin(
        op, node, "skip_layernorm", given, ["y", "total"][: len(node.outputs)], _like(given["x"], x),
        epsilon=node.attributes.get_float("epsilon", EPSILON), rms=int(rms),
    )  # fmt: skip
    return [op.Reshape(value, op.Shape(x)) for value in made]


def bias_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """The same."""
    x, bias = padded_inputs(node, 2)
    given = {"x": _rows(op, x), "bias": bias}
    form = node.attributes.get_string("form", "erf")
    (made,) = plugin(op, node, "bias_gelu", given, ["out"], _like(given["x"], x), form=form)
    return [op.Reshape(made, op.Shape(x))]


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """Ids of one type; positions that are not given are 0, 1, 2, ..."""
    ids, positions, types, word, position, kind, gamma, beta = padded_inputs(node, 8)
    if positions is not None and len(positions.shape) == 1:
        positions = op.Unsqueeze(positions, made_constant(op, [0], np.int64))
    wide = [None if v is None else v if v.dtype == ids.dtype else op.Cast(v, to=ids.dtype) for v in (positions, types)]
    given = dict(zip(TENSORS["embeddings"], (ids, *wide, word, position, kind, gamma, beta), strict=False))
    out = node.outputs[0]
    return plugin(op, node, "embeddings", given, ["out"], out.shape, epsilon=node.attributes.get_float("epsilon", EPSILON))


def _rows(op: Any, x: ir.Value) -> ir.Value:
    return op.Reshape(x, made_constant(op, [-1, known_width(x)], np.int64))


def _like(rows: ir.Value, x: ir.Value) -> ir.Shape:
    assert x.shape is not None
    return ir.Shape([None, x.shape[-1]])


# What --plugin takes -> the lowerings of the operators that it computes.
KNOWN: Mapping[str, Mapping[str, Body]] = {
    "skip_layernorm": {"FusedSkipLayerNorm": skip_layernorm, "FusedSkipRmsNorm": skip_layernorm},
    "bias_gelu": {"FusedBiasGelu": bias_gelu},
    "embeddings": {"FusedEmbeddings": embeddings},
    "conv1d_gelu": {"FusedConv1dGelu": conv1d_gelu},
    "packed_attention": {"FusedPackedAttention": packed_attention},
}
KERNELS_OF = {"conv1d_gelu": ("conv1d_gelu", "conv1d_layernorm_gelu")}  # of others the kernel has the same name
