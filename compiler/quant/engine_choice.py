"""Int8 engine or base precision, decided without a GPU: kernels, bytes and arithmetic of both engines make an estimate of time.

Each engine gets the time that its parts would take one after the other on one GPU, an L4 (sm89), by its data sheet: 300 GB/s,
121 TFLOPS in float16 and twice that in int8 (dense), and 2 us for each kernel, in which it starts, ends and does nothing else.
int8 halves arithmetic and weights, and loses fusions: more kernels, and activations that are written and read between them. The
engine with the smaller sum is kept. Nothing reaches its peak, nothing is overlapped, caches are left out: it is an estimate for
choosing between two engines of one model and no time; a machine with the GPU measures (bertc bench).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..core import Profile, Shape
from ..graph import Graph, save_graph
from ..targets import BuildRequest, graph_work, tensorrt_rtx

if TYPE_CHECKING:
    from ..targets import Kernel, Tensor

PICKS = "Gath"  # in the builder's name of a kernel that looks rows up
INDICES = frozenset({"Int32", "Int64"})
KERNEL_US, BYTES_PER_US, FLOPS_PER_US, INT8_GAIN = 2.0, 300e3, 121e6, 2.0


@dataclasses.dataclass(frozen=True)
class EngineEstimate:
    """Kernels for the first profile; bytes that they move at that profile's best shape, FLOPs there, and those in int8.

    `unknown` counts tensors whose sizes not even the compiler knows before it runs: they are missing from the bytes.
    """

    kernels: int
    nbytes: int
    flops: float
    int8_flops: float = 0.0
    unknown: int = 0

    @property
    def microseconds(self) -> float:
        arithmetic = (self.flops - self.int8_flops + self.int8_flops / INT8_GAIN) / FLOPS_PER_US
        return self.kernels * KERNEL_US + self.nbytes / BYTES_PER_US + arithmetic

    def summary(self) -> str:
        """`765 us (58 kernels, 85.8 MiB moved)`."""
        missing = f", {self.unknown} tensors of unknown size left out" if self.unknown else ""
        return f"{self.microseconds:.0f} us ({self.kernels} kernels, {self.nbytes / 2**20:.1f} MiB moved{missing})"

    def to_json(self) -> dict[str, float]:
        counted = {"kernels": self.kernels, "bytes": self.nbytes, "unknown": self.unknown, "gflop": round(self.flops / 1e9, 4)}
        return {**counted, "int8_gflop": round(self.int8_flops / 1e9, 4), "estimated_us": round(self.microseconds, 1)}


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """The estimates of the int8 engine and of the one in the base precision `name`; the smaller is kept."""

    int8: EngineEstimate
    base: EngineEstimate
    name: str
    profile: Profile

    @property
    def kept(self) -> str:
        return "int8" if self.int8.microseconds < self.base.microseconds else self.name

    @property
    def why(self) -> str:
        estimates = f"int8 engine: estimated {self.int8.summary()}, {self.name}: {self.base.summary()}"
        return f"{estimates}; kept {self.kept} (estimate for an L4 at {_shape(self.profile)}, not timed)"

    def summary(self) -> str:
        """One line: both estimates, what is kept, and how to get int8 all the same."""
        return self.why + ("" if self.kept == "int8" else "; --int8 static builds int8 anyway")

    def to_json(self) -> dict[str, Any]:
        return {"int8": self.int8.to_json(), self.name: self.base.to_json(), "kept": self.kept, "why": self.why}


def estimate_engine(typed: Graph, facts: Mapping[str, Any], request: BuildRequest, share: float = 0.0) -> EngineEstimate:
    """The estimate of an engine that `request` built. `facts`: its entries in the manifest. `share`: of the FLOPs, in int8.

    Bytes come from the log of a second engine, for the profile's best shape alone: only there are all sizes numbers.
    """
    profile, rows = request.profiles[0], facts["kernels"]["rows"]
    flops = float(graph_work(typed, rows, _shape(profile), 0).total().flops)
    fixed, path = graph_at_opt(typed, profile), request.directory / "fixed.onnx"
    written = save_graph(fixed, path)
    kernels = tensorrt_rtx.list_kernels(dataclasses.replace(request, graph=fixed, graph_path=path, profiles=({},)))
    for name in written:
        (request.directory / name).unlink()
    unknown = sum(-1 in tensor.dims for kernel in kernels if not kernel.host for tensor in _tensors(kernel))
    return EngineEstimate(sum(not row["profile"] for row in rows), bytes_moved(kernels), flops, flops * share, unknown)


def bytes_moved(kernels: Sequence[Kernel]) -> int:
    """Bytes that kernels of fixed sizes read and write: each tensor that a kernel lists once, of a table one row for each index.

    What `targets.graph_work` counts is a lower bound of it. A view is listed with its own dimensions: a kernel that
    reads k and v out of one buffer of q, k and v reads two thirds of it.
    """
    return sum(_moved(kernel) for kernel in kernels if not kernel.host)


def _moved(kernel: Kernel) -> int:
    constants = (_picked(kernel, t) if PICKS in kernel.name else t.nbytes for t in kernel.constants)
    return sum(tensor.nbytes for tensor in (*kernel.inputs, *kernel.outputs)) + sum(constants)


def _picked(kernel: Kernel, table: Tensor) -> int:
    """Bytes of a constant of a kernel that looks rows up. Which indices are for which table is not listed: the most there are."""
    indices = [math.prod(t.dims) for t in (*kernel.inputs, *kernel.constants) if t.dtype in INDICES and t is not table]
    rows = table.dims[0] if table.dims else 1
    return table.nbytes // max(rows, 1) * min(rows, max(indices, default=rows))


def _tensors(kernel: Kernel) -> Iterator[Tensor]:
    yield from (*kernel.inputs, *kernel.constants, *kernel.outputs)


def graph_at_opt(graph: Graph, profile: Profile) -> Graph:
    """The graph for a profile's best shape alone; all other shapes are left to the compiler."""
    copy, sizes = graph.copy(), {name: dim.opt for name, dim in profile.items()}
    shapes = {spec.name: spec.shape_at(sizes) for spec in graph.inputs}  # `past + 1` too
    for value in copy.model.graph.inputs:
        value.shape = ir.Shape(shapes[str(value.name)])
    for node in copy.model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    return copy


def _shape(profile: Profile) -> Shape:
    return Shape(tuple((name, dim.opt) for name, dim in profile.items()))
