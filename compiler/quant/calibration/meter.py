"""Run a graph one sample at a time with the measured tensors as its outputs, and count their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...core import DataError, RunFailed
from ...data import RealPositions, UnpaddedSample
from ...graph import Graph
from ...runtime import reference, with_outputs
from .statistics import MeasuredTensor, Statistics

Arrays = dict[str, np.ndarray]
TOGETHER = 256  # tokens that are counted at once: enough that numpy counts and does not wait, and little memory


class Meter:
    """Runs a graph with the measured tensors as its outputs, and counts their values."""

    def __init__(self, graph: Graph, found: Sequence[MeasuredTensor]) -> None:
        self._fed = {place.name for place in found} & {spec.name for spec in graph.inputs}
        self._run = [place.name for place in found if place.name not in self._fed]
        self._names = {str(dim) for spec in graph.inputs for dim in spec.dims if isinstance(dim, str)}
        if self._run:  # ONNX Runtime opens no graph without an output
            self._session, self._weights = reference.reference_session(reference.emulate_rounding(with_outputs(graph, self._run)))

    def run(self, row: UnpaddedSample) -> Arrays:
        """The measured tensors of one sample, by name; none of a sample that is all padding."""
        if row.dead:
            return {}
        fed = {name: row.feeds[name] for name in self._fed}
        if not self._run:
            return fed
        try:
            return dict(zip(self._run, self._session.run(self._run, {**self._weights, **row.feeds}), strict=True)) | fed
        except RunFailed as error:
            raise DataError(f"the float32 graph on {row.label}: {error}") from error

    def ahead(self, samples: Iterator[UnpaddedSample]) -> Iterator[list[tuple[UnpaddedSample, Arrays]]]:
        """Samples with their tensors, some short ones at a time; the next one runs while these are counted."""
        with ThreadPoolExecutor(1) as pool:
            made: list[tuple[UnpaddedSample, Arrays]] = []
            running: list[tuple[UnpaddedSample, Future[Arrays]]] = []
            for row in samples:
                running.append((row, pool.submit(self.run, row)))
                if len(running) > 1:
                    before, arrays = running.pop(0)
                    made.append((before, arrays.result()))
                if sum(each.tokens for each, _ in made) >= TOGETHER or len(made) >= TOGETHER // 16:
                    yield made
                    made = []
            yield made + [(row, arrays.result()) for row, arrays in running]

    def count(self, samples: Sequence[tuple[UnpaddedSample, Arrays]], tensors: Mapping[str, Statistics]) -> None:
        """Count what the tensors of some samples hold."""
        for name, statistics in tensors.items():
            found = [a[name] if r.alive is None else self._live(a[name], statistics.place, r.alive) for r, a in samples]
            kept = [array for array in found if array is not None]
            statistics.skipped += len(found) - len(kept)
            statistics.add(*kept)

    def _live(self, array: np.ndarray, place: MeasuredTensor, alive: RealPositions) -> np.ndarray | None:
        """The values at positions that are not padding; None where the tensor's dims do not tell which these are."""
        if len(place.dims) != array.ndim:
            return None
        for axis, (dim, size) in enumerate(zip(place.dims, array.shape, strict=True)):
            if isinstance(dim, int) or size == 1:
                continue
            names = set(re.findall(r"[A-Za-z_]\w*", dim))
            if not names or not names <= self._names:
                return None
            if alive.name not in names and alive.name != dim:
                continue
            if size != len(alive.positions):
                return None
            array = array.compress(alive.positions, axis)
        return array
