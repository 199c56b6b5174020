"""Every node of a typed graph against the table of CUDA kernels: nothing falls back to the CPU unsaid.

ONNX Runtime gives a node that has no CUDA kernel to its CPU provider and copies its values there and back, with a warning in a
log that nobody reads. Here it fails the build. What ONNX Runtime computes on the CPU by right is arithmetic on shapes: integers
that come from Shape and constants alone, which it has there already.
"""

from __future__ import annotations

import dataclasses

from ...core import BuildFailed, counted
from ...graph import Graph
from .kernels import table, why_no_kernel
from .shapes import shape_values

# What arithmetic on shapes is made of: such nodes ONNX Runtime keeps on the CPU, and no others may be there.
ARITHMETIC = frozenset(
    """Shape Size Constant Gather Concat Unsqueeze Squeeze Slice Cast Add Sub Mul Div Mod Min Max Neg Abs Equal Less LessOrEqual
    Greater GreaterOrEqual And Or Not Where Reshape Identity ReduceProd ReduceMax ReduceMin ReduceSum ConstantOfShape Expand Split
    Range Floor Ceil""".split()
)
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Placement:
    """How many nodes have a CUDA kernel, and which are arithmetic on shapes without one."""

    cuda: int
    on_cpu: tuple[str, ...]


def _older(missing: list[str]) -> str:
    """Advice where a kernel is of an older version of its operator: exporters write the opset that they are asked for."""
    return ", or export the source to opset 20" if any("as it is since" in why for why in missing) else ""


def require_kernels(graph: Graph) -> Placement:
    """Raises BuildFailed that names the nodes without a CUDA kernel for their version and types, and why."""
    shapes = shape_values(graph.model.graph)
    missing: list[str] = []
    on_cpu: list[str] = []
    count = 0
    for node in graph.model.graph.all_nodes():
        why = why_no_kernel(node, graph.opset)
        if why is None:
            count += node.op_type != "Constant"
        elif all(value in shapes for value in node.outputs):
            on_cpu.append(f"{node.op_type} {node.name!r}")
        else:
            missing.append(f"{node.op_type} {node.name!r}: {why}")
    if missing:
        more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        version = table()["onnxruntime"]
        raise BuildFailed(
            f"onnxruntime-cuda: {counted(len(missing), 'node')} without a kernel in the CUDA provider of onnxruntime-gpu "
            f"{version} would run on the CPU, with copies between: {'; '.join(missing[:SHOWN])}{more}. Build the target "
            f"onnxruntime, tensorrt or tensorrt-rtx, or another precision{_older(missing)}"
        )
    return Placement(count, tuple(on_cpu))
