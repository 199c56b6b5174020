"""Types and shapes of every value of a graph, at the door: few exporters write them, and all that follows reads them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..core import BertcError, counted
from ..graph import Graph, short_reason, subgraphs

TYPES = {
    "float": "FLOAT", "double": "DOUBLE", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "bool": "BOOL", "string": "STRING",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def infer_types(graph: Graph) -> list[str]:
    """Give every value of `graph`, in place, the type and shape that follow from its inputs; notes of what has none.

    onnx's inference first. It stops at operators of other domains: ONNX Runtime knows those of its own, and is asked for what is
    left. What a file says of itself stays.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if not any(_untyped(graph.model.graph)) and not any(_unnamed(graph.model.graph)):
        return []
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(graph.model)
    left = list(_untyped(graph.model.graph))
    if not left:
        return []
    why = _ask_runtime(graph)
    if why is None:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(graph.model)  # behind what has a shape now
    left = [value for value in _untyped(graph.model.graph) if value.dtype is None]
    said = f" (ONNX Runtime: {why})" if why else ""
    return [f"no type can be inferred for {counted(len(left), 'value')}, the first is {left[0].name!r}{said}"] if left else []


def _untyped(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values without a type or a rank that something reads, those of inner graphs too."""
    for node in graph:
        yield from (v for v in node.outputs if (v.dtype is None or v.shape is None) and v.name and _is_tensor(v))
        for inner in subgraphs(node):
            yield from _untyped(inner)


def _unnamed(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values with a dim of which nothing is said."""
    for value in (value for node in graph.all_nodes() for value in node.outputs if value.shape is not None):
        if any(isinstance(dim, ir.SymbolicDim) and not dim.value for dim in value.shape or ()):
            yield value


def _is_tensor(value: ir.Value) -> bool:
    return (value.type is None or isinstance(value.type, ir.TensorType)) and bool(value.uses() or value.is_graph_output())


def _ask_runtime(graph: Graph) -> str | None:
    """Types and shapes as ONNX Runtime finds them, of what has none in the main graph; why it does not say, or None."""
    from ..runtime import reference_session

    copy = graph.copy()
    inner = copy.model.graph
    missing = {str(v.name): v for v in _untyped(graph.model.graph) if v.producer() in set(graph.model.graph)}
    inner.outputs.extend(v for node in inner for v in node.outputs if v.name in missing and not v.is_graph_output())
    try:
        session, _ = reference_session(copy)
    except BertcError as error:
        return short_reason(error)
    for found in session.get_outputs():
        value, kind = missing.get(found.name), found.type.removeprefix("tensor(").removesuffix(")")
        if value is None or kind not in TYPES:
            continue
        value.type = value.type or ir.TensorType(ir.DataType[TYPES[kind]])
        if value.shape is None and found.shape is not None and _has_rank(found):
            value.shape = ir.Shape([dim or None for dim in found.shape])
    return None


def _has_rank(found: object) -> bool:
    """ONNX Runtime says [] of a scalar and of what it knows no rank of."""
    return bool(found.shape)  # type: ignore[attr-defined]
