"""Runs a graph a sample at a time with the tensors that are measured as its outputs, and counts what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from . import reference
from .errors import DataError
from .graph import Graph
from .rows import Alive, Row
from .tensor_stats import Place, Statistics

Arrays = dict[str, np.ndarray]


class Meter:
    """Runs a graph with the wanted tensors as its outputs, and counts what they hold."""

    def __init__(self, graph: Graph, found: Sequence[Place]) -> None:
        self._fed = {place.name for place in found} & {spec.name for spec in graph.inputs}
        self._run = [place.name for place in found if place.name not in self._fed]
        self._names = {str(dim) for spec in graph.inputs for dim in spec.dims if isinstance(dim, str)}
        self._session = reference.session(reference.emulated(with_outputs(graph, self._run)))

    def run(self, row: Row) -> Arrays:
        """The wanted tensors of one sample, by name; none of a sample that is all padding."""
        if row.dead:
            return {}
        fed = {name: row.feeds[name] for name in self._fed}
        if not self._run:
            return fed
        try:
            return dict(zip(self._run, self._session.run(self._run, dict(row.feeds)), strict=True)) | fed
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise DataError(f"the model does not run on {row.label}: {str(error).strip().splitlines()[0]}") from error

    def ahead(self, samples: Iterator[Row]) -> Iterator[tuple[Row, Arrays]]:
        """Each sample with its tensors; the next one runs while this one is counted."""
        with ThreadPoolExecutor(1) as pool:
            running: list[tuple[Row, Future[Arrays]]] = []
            for row in samples:
                running.append((row, pool.submit(self.run, row)))
                if len(running) > 1:
                    before, arrays = running.pop(0)
                    yield before, arrays.result()
            for row, arrays in running:
                yield row, arrays.result()

    def count(self, row: Row, arrays: Arrays, tensors: Mapping[str, Statistics]) -> None:
        """Count what the tensors of one sample hold."""
        for name, statistics in tensors.items():
            kept = arrays[name] if row.alive is None else self._live(arrays[name], statistics.place, row.alive)
            if kept is None:
                statistics.skipped += 1
                continue
            statistics.add(kept)

    def _live(self, array: np.ndarray, place: Place, alive: Alive) -> np.ndarray | None:
        """The values at places that are not padding; None where the tensor's dims do not tell which these are."""
        for axis, (dim, size) in enumerate(zip(place.dims, array.shape, strict=True)):
            if isinstance(dim, int) or size == 1:
                continue
            names = set(re.findall(r"[A-Za-z_]\w*", dim))
            if not names or not names <= self._names:
                return None
            if alive.name not in names:
                continue
            if size != len(alive.places):
                return None
            array = array.compress(alive.places, axis)
        return array


def with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """A copy that computes these values and no more; weights are shared."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    copy = graph.copy()
    values = {str(v.name): v for node in copy.model.graph for v in node.outputs}
    copy.model.graph.outputs.clear()
    copy.model.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(copy.model)
    return copy
