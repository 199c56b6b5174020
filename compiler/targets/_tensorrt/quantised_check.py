"""Check that quantised GEMMs read int8 or fp8 in the engine, by the builder's log: nodes of each kernel and the types it reads.

Where only the weights are quantised, that the engine stores them so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...core import BuildFailed
from ...graph import Graph
from .._protocol import Int8Attention
from .kernel_log import Kernel, gemm_kernels, is_matrix, kernels_naming, made_in, node_name, shown_nodes

# Type of what a DequantizeLinear reads -> its name here, and the builder's spellings of it.
TYPES: Mapping[ir.DataType, tuple[str, frozenset[str]]] = {
    ir.DataType.INT8: ("int8", frozenset({"Int8"})),
    ir.DataType.FLOAT8E4M3FN: ("fp8", frozenset({"FP8", "Float8"})),
}
# Measured on TensorRT-RTX 1.7 for sm80, 86, 89 and 120, heads of 8 to 128 and lengths of 256 to 4096 (bench_attention in the
# benchmarks); NVIDIA says the same of lengths in TensorRT (issue 3724 of NVIDIA/TensorRT).
ATTENTION = Int8Attention(longest=512, sizes=(16, 32, 64))


def check_quantised(graph: Graph, kernels: Sequence[Kernel]) -> dict[str, int]:
    """{"asked": GEMMs whose operands both come out of a DequantizeLinear, "int8" or "fp8": those proven to read that type,
    "int8_weights": GEMMs of which only the weights do, proven to be stored so}; what there is none of is left out.

    Raises BuildFailed naming those that a layer of the engine computes in another type, or that no layer names.
    """
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
    found: dict[str, int] = {}
    for dtype, (name, spelt) in TYPES.items():
        both = [node for node in gemms if _types(node) == [dtype, dtype]]
        wrong = [node for node in both if not _is_proven(node, both, kernels, spelt)]
        _refuse(wrong, f"{name} was requested, {len(wrong)} of {len(both)} quantised GEMMs do not read {name} in the engine")
        weights = [node for node in gemms if _types(node) == [None, dtype]]
        wrong = [node for node in weights if not _are_stored(node, kernels, spelt)]
        _refuse(wrong, f"{name} weights were requested, {len(wrong)} of {len(weights)} GEMMs read none in the engine")
        found |= {"asked": found.get("asked", 0) + len(both), name: len(both)} if both else {}
        found |= {f"{name}_weights": len(weights)} if weights else {}
    return found


def _refuse(wrong: Sequence[ir.Node], reason: str) -> None:
    if wrong:
        raise BuildFailed(f"{reason}: {shown_nodes(wrong)}")


def _types(node: ir.Node) -> list[ir.DataType | None]:
    """For each of the two operands, the type it is stored in where it comes out of a DequantizeLinear."""
    stored = [_stored(value) for value in node.inputs[:2]]
    return [value.dtype if value is not None else None for value in stored]


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The quantised tensor behind a DequantizeLinear; None for what comes from elsewhere."""
    maker = value.producer() if value is not None else None
    return maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None


def _is_proven(node: ir.Node, gemms: Sequence[ir.Node], kernels: Sequence[Kernel], spelt: frozenset[str]) -> bool:
    """Whether in every profile kernels compute a GEMM, and each of them reads the type."""
    profiles = list(kernels_naming(node, kernels))
    computed = [gemm_kernels(node, named) or named for named in profiles]
    return bool(profiles) and all(named and all(_reads(each, gemms, spelt) for each in named) for named in computed)


def _reads(kernel: Kernel, gemms: Sequence[ir.Node], spelt: frozenset[str]) -> bool:
    """Whether a kernel reads every quantised operand of its GEMMs in the type: as many activations, and as much of weights, which
    the builder may have joined into one (three projections of one activation).

    A kernel names the DequantizeLinear before its GEMM, so what counts is where the quantised value is from: the kernel of an
    attention makes the softmax itself, and quantises it, and reads q, k and v.
    """
    inside = [node for node in gemms if node_name(node) in kernel.onnx_nodes]
    operands = [stored for node in inside for stored in map(_stored, node.inputs[:2]) if stored is not None]
    weights = {stored.name: stored.const_value.size for stored in operands if stored.const_value is not None}
    outside = {s.name for s in operands if s.const_value is None and not _made_whole(s, kernel)}
    held = sum(math.prod(c.dims) for c in filter(is_matrix, kernel.constants) if c.dtype in spelt)
    read = sum(tensor.dtype in spelt for tensor in kernel.inputs)
    return bool(operands) and held >= sum(weights.values()) and read >= max(1, len(outside))


def _made_whole(stored: ir.Value, kernel: Kernel) -> bool:
    """Whether a kernel computes what is quantised, and does not only quantise it."""
    maker = stored.producer()
    return maker is not None and maker.inputs[0] is not None and made_in(maker.inputs[0], kernel)


def _are_stored(node: ir.Node, kernels: Sequence[Kernel], spelt: frozenset[str]) -> bool:
    """Whether in every profile a kernel that names a GEMM reads a matrix of the type from the engine's weights."""
    profiles = list(kernels_naming(node, kernels))
    constants = [[c for kernel in named for c in filter(is_matrix, kernel.constants)] for named in profiles]
    return bool(profiles) and all(any(c.dtype in spelt for c in each) for each in constants)
