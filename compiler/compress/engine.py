"""What an engine of a model is made of: FLOPs of its products, bytes of its weights, kernels. It is compiled and not timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from .. import precision, targets
from ..core import Dim, NotFused, Profile, Progress, Shape, profiles, scratch
from ..distill import Net
from ..fusions import engine as fusing
from ..graph import Graph, deduplicate_initializers, save_graph
from ..quant import dynamic_int8, weight_bits
from ..source import FactoryModel, torch_export
from ..targets import BuildRequest

SHAPE = {"batch": 8, "length": 128}
OPSET = 20
GPU = "sm89"  # the compiler needs one to be named; no GPU is needed to compile
EXAMPLE = (3, 13)  # batch, length


@dataclasses.dataclass(frozen=True)
class Engine:
    """FLOPs at `shape`, bytes of the weights that its compiler gets, kernels or nodes (`counted`), bytes that they move."""

    flops: int
    weight_bytes: int
    kernels: int
    counted: str
    moved_bytes: int | None
    shape: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def module_of(net: Net) -> FactoryModel:
    """The module with examples and dynamic dimensions, as a checkpoint of it is exported."""
    limit = torch_export.position_limit(net.model)
    length = min(EXAMPLE[1], limit or EXAMPLE[1])
    rows = int(net.model.config.vocab_size)
    low = min(10, rows // 2)
    ids = low + torch.arange(EXAMPLE[0] * length).reshape(EXAMPLE[0], length) % (rows - low)
    made = {name: torch.ones_like(ids) for name in net.origin.inputs} | {"input_ids": ids}
    if "token_type_ids" in made:
        made["token_type_ids"] = torch.zeros_like(ids)
    names: Any = net.module.outputs
    inputs = {name: made[name] for name in net.origin.inputs}
    return FactoryModel(net.module.eval(), inputs, dict.fromkeys(inputs, tuple(SHAPE)), names, {"length": (1, limit)})


def dims_of(made: FactoryModel) -> dict[str, Dim]:
    """Batch and length of a module of `module_of`."""
    limits = made.limits or {}
    return {name: Dim(name, *limits.get(name, (1, None))) for name in SHAPE}


def fused(net: Net) -> tuple[Graph, dict[str, Dim]]:
    """The graph of a net with its fusions, and its dimensions: what `typed` and `count` begin with."""
    made = module_of(net)
    graph, _ = torch_export.export_module(made, OPSET)
    dims = dims_of(made)
    return _fused(graph, dims), dims


def typed(graph: Graph, name: str, mode: str) -> Graph:
    """A fused graph as the compiler of target `name` gets it in precision `mode`."""
    target = targets.get(name)
    lowered = target.lower(graph, _sms(name))
    if mode == "int8-dynamic":
        lowered = dynamic_int8(lowered, weight_bits(name))
    given = {"kernels": target.KERNELS} if hasattr(target, "KERNELS") else {}
    made = precision.get(mode).apply(lowered, None, **given).graph
    deduplicate_initializers(made.model, made=True)
    return made


def count(typed: Graph, dims: dict[str, Dim], name: str, mode: str, sizes: Mapping[str, int] = SHAPE) -> Engine:
    """What the engine of a typed graph is made of, at `sizes` or the largest that the model takes."""
    sizes = {axis: min(size, dims[axis].max or size) for axis, size in sizes.items()}
    with scratch() as folder:
        path = folder / "graph.onnx"
        save_graph(typed, path)
        request = BuildRequest(typed, path, folder, mode, _sms(name), (_profile(sizes, dims),))
        facts = targets.get(name).build(request).facts
    kernels = facts.get("kernels")
    total = targets.graph_work(typed, kernels["rows"] if kernels else None, Shape(tuple(sizes.items())), 0).total()
    counted = f"kernels of TensorRT-RTX, {mode}" if kernels else f"nodes given to ONNX Runtime, {mode}"
    number = int(kernels["count"]) if kernels else sum(typed.op_counts().values())
    return Engine(total.flops, typed.initializer_bytes, number, counted, total.moved, "x".join(map(str, sizes.values())))


def measure(net: Net, log: Progress) -> Engine:
    """Export, fuse, lower, type, compile: for TensorRT-RTX in fp16 where its package is there, else for ONNX Runtime in fp32."""
    with log.stage("compile to count kernels"):
        graph, dims = fused(net)
        rtx = targets.get("tensorrt-rtx").available().build
        name, mode = ("tensorrt-rtx", "fp16") if rtx else ("onnxruntime", "fp32")
        return count(typed(graph, name, mode), dims, name, mode)


def _sms(name: str) -> tuple[str, ...]:
    return (GPU,) if targets.get(name).SMS else ()


def _fused(graph: Graph, dims: dict[str, Dim]) -> Graph:
    try:
        return fusing.fuse(graph, dims, prove=False).graph
    except NotFused:
        return graph


def _profile(sizes: Mapping[str, int], dims: dict[str, Dim]) -> Profile:
    text = ",".join(f"{name}=1:{size}:{size}" for name, size in sizes.items())
    return profiles.parse_profile(text, dims)
