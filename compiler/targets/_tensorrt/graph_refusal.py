"""What TensorRT cannot take of a source, said before any work is done."""

from __future__ import annotations

from ...graph import DOMAIN, Graph
from ...source import describe_quantised, why_kept, why_not_carried

SHOWN = 3


def graph_refusal(graph: Graph) -> str | None:
    """Operators that are not ONNX's, with what is missing, or activations that are quantised already; None for neither."""
    functions = {(key[0], key[1]) for key in graph.model.functions}
    foreign = [n for n in graph.model.graph.all_nodes() if n.domain not in ("", "ai.onnx", DOMAIN)]
    foreign = [node for node in foreign if (node.domain, node.op_type) not in functions]
    if (found := describe_quantised(graph)) and (why := why_not_carried(graph)):
        return (
            f"the model is quantised already ({found}), and TensorRT takes symmetric Q/DQ pairs of int8 alone: {why}. Give the "
            "float model and build it with --int8 --data FILE, or build this one for ONNX Runtime: --fp32 --target onnxruntime"
        )
    if not foreign:
        return None
    reasons = why_kept(graph.model) or [f"{node.domain}.{node.op_type} {node.name!r}" for node in foreign]
    more = f" and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return (
        f"{len(foreign)} nodes are no standard ONNX, and TensorRT cannot read them: {'; '.join(reasons[:SHOWN])}{more}. Give the "
        "file from before ONNX Runtime's optimiser, or build for ONNX Runtime: --fp32 --target onnxruntime"
    )
