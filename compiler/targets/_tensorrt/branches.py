"""What the branches of an If and the bodies of loops cost on TensorRT: no half precision, and some of them the engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from ...core import InputError
from ...graph import GEMM_OPS, Graph, subgraphs

NESTED = frozenset("If Loop Scan LSTM GRU RNN".split())  # what becomes a conditional or a loop of the engine's own
# TensorRT-RTX 1.7 on an If that is open (an input's value decides it, or sizes that a profile leaves open) with another open If
# inside, and with a loop inside; each is built alone, or where the condition is decided before.
SCOPES = re.compile(r"graphScope\.cpp|CHECK\(static_cast<size_t>\(i\) < op->input_size\(\)\)")
ELSEWHERE = "build it for ONNX Runtime: --fp32 --target onnxruntime"


def require_half_outside(graph: Graph, precision: str) -> None:
    """Raises InputError where half precision would change nothing: all GEMMs lie in branches or loops, which stay float32."""
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in GEMM_OPS and node.domain in ("", "ai.onnx")]
    if precision not in ("fp16", "bf16") or not gemms or any(node.graph is graph.model.graph for node in gemms):
        return
    around = [node for node in graph.model.graph if _holds(node, GEMM_OPS)]
    named = ", ".join(f"{node.op_type} {node.name!r}" for node in around)
    nested = any(_holds(node, NESTED) for node in around)
    raise InputError(
        f"{precision} was asked for, and all {len(gemms)} GEMMs of the graph lie inside {named}, where everything stays float32; "
        + (ELSEWHERE if nested else "build --fp32")
    )


def scope_refusal(message: str, graph: Graph) -> InputError | None:
    """What an assertion of the builder about scopes is about; None for another message, or a graph without such an If."""
    if not SCOPES.search(message):
        return None
    for node in graph.model.graph:
        inside = _holds(node, NESTED) if node.op_type == "If" else []
        if inside:
            held = ", ".join(dict.fromkeys(each.op_type for each in inside))
            by = ", ".join(repr(name) for name in sorted(_deciding(node))) or "a size"
            return InputError(
                f"TensorRT builds no If and no loop ({held}) inside the branch of an If that is decided only when it runs: "
                f"{node.name!r}, decided by {by}. Give a file without that choice, or {ELSEWHERE}"
            )
    return None


def _holds(node: ir.Node, kinds: frozenset[str]) -> list[ir.Node]:
    return [each for inner in subgraphs(node) for each in inner.all_nodes() if each.op_type in kinds]


def _deciding(node: ir.Node) -> set[str]:
    """The inputs whose values, or sizes, the condition of an If comes from."""
    return {str(value.name) for value in _sources(node.inputs[0]) if value is not None and value.is_graph_input()}


def _sources(value: ir.Value | None) -> Iterator[ir.Value | None]:
    todo, seen = [value], {value}
    while todo:
        each = todo.pop()
        yield each
        maker = None if each is None else each.producer()
        fresh = [v for v in (maker.inputs if maker is not None else ()) if v not in seen]
        seen.update(fresh)
        todo += fresh
