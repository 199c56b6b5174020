"""Kernels of wav2vec 2.0, unfused and fused

Kernels that TensorRT-RTX compiles for sm89 (no GPU is needed, none was used: these are counts, not times) of wav2vec2-base with a
CTC head: 12 layers, 94 million seeded random weights (a count depends on shapes, and on biases that are not zero), dynamic batch
1 to 8 and 45 ms to 10 s of audio. The encoder of features is its 7 convolutions, the norm and the projection behind them.
"""

from __future__ import annotations

from bertc import precision
from bertc.core.profiles import Range
from bertc.fusions import engine as fuse
from bertc.graph.model import Graph
from bertc.graph.provenance import module_path
from bertc.ops import expansion as canonical
from bertc.recipes import wav2vec2_speech as speech
from bertc.source import torch_export
from bertc.source.factory import FactoryModel, dims_of
from bertc.targets._tensorrt import kernel_log as _kernels
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

from .bench_kernels import MODES, build
from .tools import table

OPSET = 20
PROFILE = {"batch": Range(1, 4, 8), "samples": Range(speech.TWO_FRAMES, 64_000, 160_000)}


def run() -> str:
    eager, sdpa = (speech.speech(speech.BASE, attention) for attention in ("eager", "sdpa"))
    whole = forms("wav2vec2-base", eager) | {"wav2vec2-base, plain export, sdpa": exported(sdpa)}
    rows = [row(name, graph, mode) for name, graph in sorted(whole.items()) for mode in MODES]
    rows += [row(name, graph, mode) for name, graph in forms("features alone", features(eager)).items() for mode in MODES]
    return table(["graph", "type", "by layer", "rest", "kernels"], rows)


def forms(name: str, made: FactoryModel) -> dict[str, Graph]:
    """The graph as exported, and fused and lowered as it is built."""
    source = exported(made)
    fused = fuse.fuse(source, dims_of(made), lowerings={"tensorrt-rtx": _lower_trt.LOWERINGS}).graph
    lowered = _trt_graph.tidy(canonical.expand(fused, _lower_trt.LOWERINGS))
    return {f"{name}, plain export": source, f"{name}, fused": lowered}


def exported(made: FactoryModel) -> Graph:
    return torch_export.export_module(made, OPSET)[0]


def features(made: FactoryModel) -> FactoryModel:
    """The encoder of features as a model of its own."""
    return made._replace(module=speech.Features(made.module.model), outputs=("features",))


def row(name: str, graph: Graph, mode: str) -> list[str]:
    typed = precision.get(mode).apply(graph).graph
    modules = {_kernels.node_name(n): module_path(n) for n in typed.model.graph.all_nodes()}
    found = _kernels.kernels_per_layer(build(typed, mode, PROFILE), modules)
    layers = ", ".join(map(str, found["layers"])) or "-"
    return [name, mode, layers, str(found["rest"]), str(sum(found["layers"]) + found["rest"])]
