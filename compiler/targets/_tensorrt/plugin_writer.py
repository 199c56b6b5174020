"""How a plugin's node is written: `plugin_nodes.py` has the operators.

A plugin's node has its own domain, as TensorRT's parser finds it by name and namespace. Which tensors are there is part of its
name; what it means stands in its metadata, so that a graph with such nodes runs in the reference as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...core import InputError
from ...runtime import PLUGIN, PLUGIN_DOMAIN

NAMESPACE = "bertc"  # of the plugins, where TensorRT looks for their names
LEFT = "bertc.no_plugin"  # metadata of a node in the place of a plugin: why it is none
# Kernel -> its tensors in order, as in its Launch, inputs and outputs. A test holds them against the launches.
TENSORS: Mapping[str, tuple[str, ...]] = {
    "skip_layernorm": ("x", "skip", "bias", "gamma", "beta", "scale", "y", "total", "quantised"),
    "bias_gelu": ("x", "bias", "out"),
    "embeddings": ("ids", "positions", "types", "word", "position", "type_", "gamma", "beta", "out"),
    "conv1d_gelu": ("x", "w", "b", "out"),
    "conv1d_layernorm_gelu": ("x", "w", "b", "gamma", "beta", "out"),
    "packed_attention": ("qkv", "cu_seqlens", "bias", "keys", "out"),
}


def plugin(
    op: Any, node: ir.Node, launch: str, given: Mapping[str, ir.Value | None], outputs: Sequence[str], shape: Any,
    meaning: Mapping[str, Any] | None = None, **attributes: Any,
) -> list[ir.Value]:  # fmt: skip
    """The node; its inputs are those of the operator that are there, in their order.

    `meaning`: what the reference runs where that is not the canonical operator with the kernel's own attributes and inputs.
    """
    present = [name for name in TENSORS[launch] if given.get(name) is not None or name in outputs]
    absent = [name.strip("_") for name in TENSORS[launch] if name not in present]
    inputs = [given[name] for name in present if name not in outputs]
    stated = {**attributes, "plugin_namespace": NAMESPACE, "aot": 1}
    made = op.op_multi_out("_without_".join([launch, *absent]), inputs, stated, num_outputs=len(outputs), domain=PLUGIN_DOMAIN)
    slots = [at for at, value in enumerate(given.values()) if value is not None]
    meant = {"launch": launch, "present": present, "operator": node.op_type, "slots": slots, "count": len(given)}
    made[0].producer().metadata_props[PLUGIN] = json.dumps(meant | dict(meaning or {}))
    for value in made:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), shape
    return list(made)


def left(op: Any, node: ir.Node, made: Sequence[ir.Value], why: str) -> Sequence[ir.Value]:
    """What takes the place of a plugin: all nodes are marked with the reason, as some of them may go."""
    for each in op.nodes:
        each.metadata_props[LEFT] = f"{node.name}: {why}"
    return made


def known_width(x: ir.Value) -> int:
    """The last size, which a kernel is compiled for. InputError where it is dynamic."""
    width = x.shape[-1] if x.shape is not None else None
    if not isinstance(width, int):
        raise InputError(f"--plugin: {x.name!r} has no known width, which a kernel is compiled for; build without it")
    return width
