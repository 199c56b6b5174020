"""Values that a source's graph and an artifact's graph both have: what leaves a PyTorch module, and which node makes it still.

A normalisation, softmax or activation of the same origin (`graph.provenance`) makes the same value. Of any other node of the same
origin that is shown by running both graphs in float32 on a few tokens first. What neither way finds is counted, not guessed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...data import Sample
from ...fusions.proof import small_feeds
from ...graph import Graph, Origin
from ...graph import provenance as origin
from ...runtime import FLOAT, HALVES, TapSession, emulate_rounding

SAME_VALUE_ERROR = 0.02  # relative error of two float32 runs, one with rounded weights; different values differ by about 1
VALUE_DEFINING_OPS = frozenset("LayerNormalization RMSNormalization Softmax Gelu Relu Tanh Sigmoid Erf".split())
FLOATS = (FLOAT, *HALVES)
NUMBERED_LAYER = re.compile(r"\.\d+$")
SWAPPED_AXES = (1, 0)


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A value that leaves a module: its name in the source's graph and in the artifact's, where two axes may be swapped."""

    module: str
    origin: Origin
    op: str
    source: str
    artifact: str
    swapped: bool
    dims: tuple[int | str, ...]


def module_boundaries(source: Graph) -> Iterator[tuple[str, ir.Value]]:
    """(module, value) of every float value that alone leaves a module, in the order of the graph.

    The module is the innermost one that is numbered (a layer), else the outermost. A graph without modules: every float value.
    """
    leaving: dict[str, list[ir.Value]] = {}
    for node in source.model.graph:
        path = origin.module_path(node)
        for value in node.outputs:
            if value.dtype == FLOAT and value.shape is not None and len(value.shape) > 1:
                for module in _modules_left(value, path):
                    leaving.setdefault(module, []).append(value)
    modules: dict[ir.Value, list[str]] = {}
    for module, found in leaving.items():
        if len(found) == 1:
            modules.setdefault(found[0], []).append(module)
    for node in source.model.graph:
        for value in node.outputs:
            if value in modules:
                named = sorted(modules[value], key=len)
                yield next((m for m in reversed(named) if NUMBERED_LAYER.search(m)), named[0]), value


def _modules_left(value: ir.Value, path: str) -> Iterator[str]:
    """The modules round a value that it leaves: another module reads it. (The shape of a value is read by anybody.)"""
    readers = [origin.module_path(use.node) for use in value.uses() if use.node.op_type != "Shape"]
    if not path:
        if readers or value.is_graph_output():
            yield str(value.name)
        return
    steps = path.split(".")
    for end in range(1, len(steps) + 1):
        module = ".".join(steps[:end])
        outside = [reader for reader in readers if not (reader + ".").startswith(module + ".")]
        if outside or value.is_graph_output():
            yield module


def match_boundaries(source: Graph, artifact: Graph, samples: Sequence[Sample]) -> tuple[tuple[Boundary, ...], tuple[str, ...]]:
    """(boundaries that both graphs have, modules whose output the artifact's graph does not have)."""
    makers: dict[str | None, list[ir.Node]] = {}
    for node in artifact.model.graph:
        if node.op_type != "Cast" and node.outputs[0].dtype in FLOATS:
            for name in origin.origin_of(node).nodes:
                makers.setdefault(name, []).append(node)
    wanted = list(module_boundaries(source))
    candidates = {value: makers.get(_name(value), []) for _, value in wanted}
    check = _Check(source, artifact, candidates, samples)
    found, missing = [], []
    for module, value in wanted:
        matching_node = check.matching_node(value, candidates.get(value, []))
        if matching_node is None:
            missing.append(module)
            continue
        node, swapped = matching_node
        where = origin.origin_of(value.producer()) if value.producer() is not None else Origin()  # type: ignore[arg-type]
        dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
        found.append(Boundary(module, where, node.op_type, str(value.name), str(node.outputs[0].name), swapped, dims))
    return tuple(found), tuple(missing)


def _name(value: ir.Value) -> str | None:
    """The source graph's name for the node that makes a value, as it stands in origins."""
    node = value.producer()
    names = origin.origin_of(node).nodes if node is not None else ()
    return names[-1] if names else None


class _Check:
    """Both graphs in float32 on a few tokens: which of some nodes makes a value."""

    def __init__(
        self, source: Graph, artifact: Graph, candidates: Mapping[ir.Value, Sequence[ir.Node]], samples: Sequence[Sample]
    ) -> None:
        feeds = small_feeds(source, samples)
        self.wanted = _values(source, [str(v.name) for v, nodes in candidates.items() if nodes], feeds)
        names = dict.fromkeys(str(node.outputs[0].name) for nodes in candidates.values() for node in nodes)
        self.found = _values(emulate_rounding(artifact, rounded=False), list(names), feeds)

    def matching_node(self, value: ir.Value, nodes: Sequence[ir.Node]) -> tuple[ir.Node, bool] | None:
        """(the node, whether its first two axes are swapped), or None."""
        best: tuple[float, ir.Node, bool] | None = None
        for node in nodes:
            for swapped in (False, True):
                error = self._error(self.wanted[str(value.name)], self.found[str(node.outputs[0].name)], swapped)
                if best is None or error < best[0]:
                    best = (error, node, swapped)
        if best is not None and best[0] <= SAME_VALUE_ERROR:
            return best[1:]
        maker = value.producer()
        op_type = maker.op_type if maker is not None and maker.op_type in VALUE_DEFINING_OPS else None
        alike = [node for node in nodes if node.op_type == op_type]
        return self._by_shape(value, alike[0]) if len(alike) == 1 else None

    def _by_shape(self, value: ir.Value, node: ir.Node) -> tuple[ir.Node, bool] | None:
        wanted, found = self.wanted[str(value.name)].shape, self.found[str(node.outputs[0].name)].shape
        if wanted == found:
            return node, False
        return (node, True) if len(found) > 1 and wanted == (found[1], found[0], *found[2:]) else None

    def _error(self, wanted: np.ndarray, found: np.ndarray, swapped: bool) -> float:
        if swapped and found.ndim > 1:
            found = np.swapaxes(found, *SWAPPED_AXES)
        if wanted.shape != found.shape or not np.isfinite(found).all():
            return math.inf
        size = math.sqrt(float(np.square(wanted, dtype=np.float64).sum()))
        return math.sqrt(float(np.square(wanted - found, dtype=np.float64).sum())) / size if size else math.inf


def _values(graph: Graph, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with TapSession(graph, names) as window:
        return window.run(feeds)
