"""Values inside a graph: a session that computes some of them, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .reference import emulate_rounding, reference_session, release_pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..graph import Graph


def with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """A copy that computes these values and no more; weights are shared."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    copy = graph.copy()
    values = {str(v.name): v for node in copy.model.graph for v in node.outputs}
    copy.model.graph.outputs.clear()
    copy.model.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(copy.model)
    return copy


class TapSession:
    """A session with some values as its outputs, and no more of the graph than they need; weights are let go of."""

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        self.graph, self.names = graph, list(names)

    def __enter__(self) -> TapSession:
        self._session, self._weights = reference_session(emulate_rounding(with_outputs(self.graph, self.names)))
        self._inputs = {each.name for each in self._session.get_inputs()}
        return self

    def __exit__(self, *_: object) -> None:
        del self._session, self._weights
        for value in self.graph.model.graph.initializers.values():
            if value.const_value is not None:
                release_pages(value.const_value)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        types = {spec.name: spec.dtype for spec in self.graph.inputs}
        given = {n: np.asarray(a).astype(types[n], copy=False) for n, a in feeds.items() if n in self._inputs}
        return dict(zip(self.names, self._session.run(self.names, {**self._weights, **given}), strict=True))
