"""Kernels in the engine, unfused and fused

Kernels that TensorRT-RTX compiles for sm89 (no GPU is needed, none was used: these are counts, not times), whole network, dynamic
batch 1 to 32 and length 1 to 256: the plain export against the same graph fused and lowered, and the forms that were weighed.
MB a layer: bytes that a middle layer's kernels read and write, weights included, in an engine of batch 8 and length 128 alone
(its log gives every dimension; in fp32 such an engine has 3 kernels a layer less, which pad lengths that may be odd).
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from bertc import precision
from bertc.core.profiles import Profile, Range
from bertc.graph.model import Graph, save_graph
from bertc.graph.provenance import module_path
from bertc.ops import expansion as canonical
from bertc.targets import BuildRequest
from bertc.targets._tensorrt import adapter as _trt
from bertc.targets._tensorrt import kernel_log as _kernels
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

from .tools import MODEL, table

SM, OPT = "sm89", (8, 128)
MODES = ("fp16", "bf16", "fp32")


@dataclasses.dataclass(frozen=True)
class Count:
    """Kernels of a middle layer, outside the layers and in all; bytes a middle layer moves, by the graph of fixed sizes."""

    layer: int
    rest: int
    total: int
    nbytes: float


def run() -> str:
    from bertc.fusions import engine as fuse
    from bertc.source.opening import open_source

    source = open_source(str(MODEL))
    fused = fuse.fuse(source.graph, source.dims).graph
    rows = []
    for name, make in forms(source.graph, fused).items():
        for mode in MODES:
            found = count(make(), mode)
            rows.append([name, mode, str(found.layer), str(found.rest), str(found.total), f"{found.nbytes / 1e6:.1f}"])
    return "all-MiniLM-L6-v2 with pooling and normalisation.\n\n" + table(
        ["form", "type", "a layer", "rest", "kernels", "MB a layer"], rows
    )


def forms(source: Graph, fused: Graph) -> Mapping[str, Callable[[], Graph]]:
    """Name -> the graph in that form; `fused` still holds `bertc` nodes."""
    packed = {**_lower_trt.LOWERINGS, "FusedAttention": _lower_trt.packed_attention}
    return {
        "plain export": lambda: source,
        "canonical bodies (packed, batch first)": lambda: canonical.expand(fused),
        "packed, length first": lambda: _trt_graph.tidy(canonical.expand(fused, packed)),
        "query bias alone, length first, swaps left in": lambda: canonical.expand(fused, _lower_trt.LOWERINGS),
        "query bias alone, length first (what is built)": lambda: _trt_graph.tidy(canonical.expand(fused, _lower_trt.LOWERINGS)),
    }


def count(graph: Graph, mode: str) -> Count:
    """Kernels of the dynamic engine, bytes of the one of fixed sizes: its log gives every dimension."""
    typed = precision.get(mode).apply(graph).graph
    batch, length = typed.inputs[0].dims
    dynamic = build(typed, mode, {str(batch): Range(1, OPT[0], 32), str(length): Range(1, OPT[1], 256)})
    modules = {_kernels.node_name(n): module_path(n) for n in typed.model.graph.all_nodes()}
    layers = _kernels.kernels_per_layer(dynamic, modules)
    fixed = build(fixed_sizes(typed), mode, {})
    middle = layers["layers"][1:-1]
    return Count(
        int(statistics.median(middle)),
        sum(layers["layers"]) + layers["rest"] - len(layers["layers"]) * int(statistics.median(middle)),
        sum(layers["layers"]) + layers["rest"],
        moved(fixed, modules) / len(middle),
    )


def build(typed: Graph, mode: str, profile: Profile) -> tuple[_kernels.Kernel, ...]:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        save_graph(typed, here / "graph.onnx")
        request = BuildRequest(typed, here / "graph.onnx", here, mode, (SM,), (profile,))
        _, log = _trt._compile("tensorrt_rtx", request, None, here)
    return _kernels.parse_kernels(log)


def fixed_sizes(graph: Graph) -> Graph:
    """The graph for OPT only."""
    copy = graph.copy()
    for value in copy.model.graph.inputs:
        value.shape = ir.Shape(OPT)
    for node in copy.model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for value in copy.model.graph.outputs:
        value.shape = ir.Shape([OPT[0], *list(value.shape or ())[1:]]) if value.shape is not None else None
    return copy


def moved(kernels: tuple[_kernels.Kernel, ...], modules: Mapping[str, str]) -> float:
    """Bytes that the kernels of the middle layers read and write, a tensor once for each kernel that touches it."""
    homes = [(_kernels._layer(k, modules), k) for k in kernels if not k.host]
    depth = max(home[1] for home, _ in homes if home)
    middle = [k for home, k in homes if home and 0 < home[1] < depth]
    return float(sum(t.nbytes for k in middle for t in (*k.inputs, *k.outputs, *k.constants)))
