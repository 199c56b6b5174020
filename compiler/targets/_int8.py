"""Proof that a GEMM asked to be int8 is: from the builder's log, which names the nodes of each kernel and the types it reads."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..errors import BuildFailed
from ..graph import Graph
from ._kernels import Kernel, computing, is_matrix, listed, made_in, naming, node_name

INT8 = "Int8"


def check_quantised(graph: Graph, kernels: Sequence[Kernel]) -> dict[str, int]:
    """{"asked": GEMMs whose operands both come out of a DequantizeLinear, "int8": those proven to read int8}; {} where none is.

    Raises BuildFailed naming those that a layer of the engine computes in another type, or that no layer names.
    """
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm") and _is_quantised(node)]
    wrong = [node for node in gemms if not _is_proven(node, gemms, kernels)]
    if wrong:
        raise BuildFailed(
            f"asked for int8, {len(wrong)} of {len(gemms)} quantised GEMMs do not read int8 in the engine: {listed(wrong)}"
        )
    return {"asked": len(gemms), "int8": len(gemms)} if gemms else {}


def _is_quantised(node: ir.Node) -> bool:
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _is_proven(node: ir.Node, gemms: Sequence[ir.Node], kernels: Sequence[Kernel]) -> bool:
    """Whether in every profile kernels compute a GEMM, and each of them reads int8."""
    profiles = list(naming(node, kernels))
    computed = [computing(node, named) or named for named in profiles]
    return bool(profiles) and all(named and all(_reads_int8(each, gemms) for each in named) for named in computed)


def _reads_int8(kernel: Kernel, gemms: Sequence[ir.Node]) -> bool:
    """Whether a kernel reads every quantised operand of its GEMMs as int8, two at least.

    A kernel names the DequantizeLinear before its GEMM, so what counts is where the quantised value is from: the kernel of an
    attention makes the softmax itself, and quantises it, and reads q, k and v.
    """
    inside = [node for node in gemms if node_name(node) in kernel.onnx_nodes]
    outside = {stored.name for node in inside for stored in map(_stored, node.inputs[:2]) if not _made_whole(stored, kernel)}
    read = [tensor.dtype for tensor in (*kernel.inputs, *filter(is_matrix, kernel.constants))]
    return read.count(INT8) >= max(2, len(outside))


def _stored(value: ir.Value | None) -> ir.Value:
    """The int8 tensor behind a DequantizeLinear."""
    maker = value.producer() if value is not None else None
    assert maker is not None and maker.inputs[0] is not None
    return maker.inputs[0]


def _made_whole(stored: ir.Value, kernel: Kernel) -> bool:
    """Whether a kernel computes what is quantised, and does not only quantise it."""
    maker = stored.producer()
    return maker is not None and maker.inputs[0] is not None and made_in(maker.inputs[0], kernel)
