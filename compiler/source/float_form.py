"""Any storage and any spelling of an encoder as one float32 graph of standard operators: the first thing done to an .onnx file.

Half precision is widened, weights in few bits become the floats they stand for, operators of ONNX Runtime's optimiser are
expanded. A graph with quantised activations stays as it is. What was done is in the notes.
"""

from __future__ import annotations

from collections import Counter

from ..core import NotFused
from ..graph import Graph, upgrade_opset
from . import contrib_operators as contrib
from .quantised_activations import describe_quantised
from .stored_weights import fold_stored_weights
from .widening import widen


def as_float(graph: Graph) -> tuple[Graph, list[str]]:
    """The float32 form of a graph, which may be changed, and notes; the graph itself where it is in that form."""
    contrib.claim_own(graph.model)
    if found := describe_quantised(graph):
        return graph, [f"quantised already ({found}): it keeps its arithmetic, and nothing is fused"]
    _, notes = widen(graph.model)
    notes += fold_stored_weights(graph.model)
    if not contrib.has_contrib(graph.model):
        return graph, notes + _left(contrib.why_kept(graph.model))
    try:
        upgraded = upgrade_opset(graph)
    except NotFused as why:
        return graph, [*notes, f"operators of com.microsoft are kept as they are: {why}"]
    made, before = upgraded.graph, upgraded.graph.initializer_bytes
    done, kept = contrib.expand_contrib(made.model)
    counts = ", ".join(f"{count} {name}" for name, count in Counter(done).most_common())
    size = ""
    if contrib.STORES & set(done):
        size = f"; weights in few bits are float32 now: {before / 2**20:.1f} MiB become {made.initializer_bytes / 2**20:.1f}"
    expanded = [f"expanded to standard operators at opset {made.opset}: {counts}{size}"] if done else []
    return made, [*notes, *expanded, *_left(kept)]


def _left(kept: list[str]) -> list[str]:
    return [f"kept as they are, for ONNX Runtime alone: {'; '.join(kept[:3])}"] if kept else []
