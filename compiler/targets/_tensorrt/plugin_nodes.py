"""Fused operators as plugins of TensorRT: kernels of `bertc.plugins.kernels`, compiled into the engine (`--plugin`).

A plugin's node has its own domain, as TensorRT's parser finds it by name and namespace. Which tensors are there is part of its
name; what it means stands in its metadata, so that a graph with such nodes runs in the reference as well.
"""

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

NAMESPACE = "bertc"  # of the plugins, where TensorRT looks for their names
# Kernel -> its tensors in order, as in its Launch, inputs and outputs. A test holds them against the launches.
TENSORS: Mapping[str, tuple[str, ...]] = {
    "skip_layernorm": ("x", "skip", "bias", "gamma", "beta", "scale", "y", "total", "quantised"),
    "bias_gelu": ("x", "bias", "out"),
    "embeddings": ("ids", "positions", "types", "word", "position", "type_", "gamma", "beta", "out"),
}
PRECISIONS = ("fp32", "fp16", "bf16")


def require_known(names: Sequence[str], precision: str) -> str | None:
    """Why these operators cannot be plugins; None where they can."""
    for name in names:
        if name not in TENSORS:
            return f"--plugin {name}: no such plugin{did_you_mean(name, tuple(TENSORS))}"
    if precision not in PRECISIONS:
        return f"--plugin with {precision}: the kernels take {', '.join(PRECISIONS)}; build one of them, or without plugins"
    return None


def bodies(names: Sequence[str]) -> Mapping[str, Body]:
    """The lowerings of the operators that the named kernels compute."""
    known: Mapping[str, Mapping[str, Body]] = {
        "skip_layernorm": {"FusedSkipLayerNorm": skip_layernorm, "FusedSkipRmsNorm": skip_layernorm},
        "bias_gelu": {"FusedBiasGelu": bias_gelu},
        "embeddings": {"FusedEmbeddings": embeddings},
    }
    return {operator: body for name in names for operator, body in known[name].items()}


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
    made = _plugin(
        op, node, "skip_layernorm", given, ["y", "total"][: len(node.outputs)], _like(given["x"], x),
        epsilon=node.attributes.get_float("epsilon", EPSILON), rms=int(rms),
    )  # fmt: skip
    return [op.Reshape(value, op.Shape(x)) for value in made]


def bias_gelu(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """The same."""
    x, bias = padded_inputs(node, 2)
    given = {"x": _rows(op, x), "bias": bias}
    form = node.attributes.get_string("form", "erf")
    (made,) = _plugin(op, node, "bias_gelu", given, ["out"], _like(given["x"], x), form=form)
    return [op.Reshape(made, op.Shape(x))]


def embeddings(op: Any, node: ir.Node) -> Sequence[ir.Value]:
    """Ids of one type; positions that are not given are 0, 1, 2, ..."""
    ids, positions, types, word, position, kind, gamma, beta = padded_inputs(node, 8)
    if positions is not None and len(positions.shape) == 1:
        positions = op.Unsqueeze(positions, made_constant(op, [0], np.int64))
    wide = [None if v is None else v if v.dtype == ids.dtype else op.Cast(v, to=ids.dtype) for v in (positions, types)]
    given = dict(zip(TENSORS["embeddings"], (ids, *wide, word, position, kind, gamma, beta), strict=False))
    out = node.outputs[0]
    return _plugin(op, node, "embeddings", given, ["out"], out.shape, epsilon=node.attributes.get_float("epsilon", EPSILON))


def _rows(op: Any, x: ir.Value) -> ir.Value:
    width = x.shape[-1] if x.shape is not None else None
    if not isinstance(width, int):
        raise InputError(f"--plugin: {x.name!r} has no known width, which a kernel is compiled for; build without it")
    return op.Reshape(x, made_constant(op, [-1, width], np.int64))


def _like(rows: ir.Value, x: ir.Value) -> ir.Shape:
    assert x.shape is not None
    return ir.Shape([None, x.shape[-1]])


def _plugin(
    op: Any, node: ir.Node, launch: str, given: Mapping[str, ir.Value | None], outputs: Sequence[str], shape: Any,
    **attributes: Any,
) -> list[ir.Value]:  # fmt: skip
    """The node; its inputs are those of the operator that are there, in their order."""
    present = [name for name in TENSORS[launch] if given.get(name) is not None or name in outputs]
    absent = [name.strip("_") for name in TENSORS[launch] if name not in present]
    inputs = [given[name] for name in present if name not in outputs]
    stated = {**attributes, "plugin_namespace": NAMESPACE, "aot": 1}
    made = op.op_multi_out("_without_".join([launch, *absent]), inputs, stated, num_outputs=len(outputs), domain=PLUGIN_DOMAIN)
    slots = [at for at, value in enumerate(given.values()) if value is not None]
    meant = {"launch": launch, "present": present, "operator": node.op_type, "slots": slots, "count": len(given)}
    made[0].producer().metadata_props[PLUGIN] = json.dumps(meant)
    for value in made:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), shape
    return list(made)
