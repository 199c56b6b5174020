"""Proof that a GEMM asked to be int8 or fp8 is: from the builder's log, which names the nodes of each kernel and the types it
reads. Where only the weights are quantised, that the engine stores them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..errors import BuildFailed
from ..graph import Graph
from ._kernels import Kernel, listed, naming, runs_in

# Type of what a DequantizeLinear reads -> its name here, and the builder's spellings of it.
TYPES: Mapping[ir.DataType, tuple[str, frozenset[str]]] = {
    ir.DataType.INT8: ("int8", frozenset({"Int8"})),
    ir.DataType.FLOAT8E4M3FN: ("fp8", frozenset({"FP8", "Float8"})),
}


def check_quantised(graph: Graph, kernels: Sequence[Kernel]) -> dict[str, int]:
    """{"asked": GEMMs whose operands both come out of a DequantizeLinear, "int8" or "fp8": those proven to read that type,
    "int8_weights": GEMMs of which only the weights do, proven to be stored so}; what there is none of is left out.

    Raises BuildFailed naming those that a layer of the engine computes in another type, or that no layer names.
    """
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
    found: dict[str, int] = {}
    for dtype, (name, spelt) in TYPES.items():
        both = [node for node in gemms if _dequantised(node) == [dtype, dtype]]
        wrong = [node for node in both if not all(runs_in(node, spelt, named) for named in naming(node, kernels))]
        _refuse(wrong, f"asked for {name}, {len(wrong)} of {len(both)} quantised GEMMs do not read {name} in the engine")
        weights = [node for node in gemms if _dequantised(node) == [None, dtype]]
        wrong = [node for node in weights if not all(_stores(named, spelt) for named in naming(node, kernels))]
        _refuse(wrong, f"asked for weights in {name}, {len(wrong)} of {len(weights)} GEMMs read none in the engine")
        found |= {"asked": found.get("asked", 0) + len(both), name: len(both)} if both else {}
        found |= {f"{name}_weights": len(weights)} if weights else {}
    return found


def _refuse(wrong: Sequence[ir.Node], why: str) -> None:
    if wrong:
        raise BuildFailed(f"{why}: {listed(wrong)}")


def _dequantised(node: ir.Node) -> list[ir.DataType | None]:
    """For each of the two operands, the type it is stored in where it comes out of a DequantizeLinear."""
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return [
        maker.inputs[0].dtype if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] else None
        for maker in makers
    ]


def _stores(named: Sequence[Kernel], spelt: frozenset[str]) -> bool:
    """Whether a kernel among these reads a matrix of the type from the engine's weights."""
    return any(constant.dtype in spelt and len(constant.dims) > 1 for kernel in named for constant in kernel.constants)
