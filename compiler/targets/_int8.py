"""Proof that a GEMM asked to be int8 is: from the builder's log, which names the nodes of each kernel and the types it reads."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..errors import BuildFailed
from ..graph import Graph
from ._kernels import Kernel, listed, naming, runs_in

INT8 = frozenset({"Int8"})


def check_quantised(graph: Graph, kernels: Sequence[Kernel]) -> dict[str, int]:
    """{"asked": GEMMs whose operands both come out of a DequantizeLinear, "int8": those proven to read int8}; {} where none is.

    Raises BuildFailed naming those that a layer of the engine computes in another type, or that no layer names.
    """
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm") and _is_quantised(node)]
    wrong = [node for node in gemms if not all(runs_in(node, INT8, named) for named in naming(node, kernels))]
    if wrong:
        raise BuildFailed(
            f"asked for int8, {len(wrong)} of {len(gemms)} quantised GEMMs do not read int8 in the engine: {listed(wrong)}"
        )
    return {"asked": len(gemms), "int8": len(gemms)} if gemms else {}


def _is_quantised(node: ir.Node) -> bool:
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
