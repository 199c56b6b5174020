"""What flows through a graph when it runs: every value of one small sample, for proofs to feed beside what they make up.

Made-up activations are standard normal; those of a trained model have outliers, and its masks are as its own nodes make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...core import BertcError, DataError, Feeds, RunFailed, stop_if_exhausted
from ...data import Sample, dead_rows
from ...graph import Graph
from ...runtime import reference_session

ROWS, LENGTH = 2, 16
LIMIT = 256 * 2**20  # bytes kept; BERT-large makes 115 MB


def capture_activations(graph: Graph, samples: Sequence[Sample], limit: int = LIMIT) -> dict[str, np.ndarray]:
    """The inputs of a float32 graph, and every value that it computes from them, by name, on one of the samples.

    Two rows of 16 places are cut out of ids and masks; with other inputs it is the smallest sample, uncut: a model may be
    undefined below its length. Past `limit` bytes the values behind are left out. Raises DataError where the graph cannot be run,
    with what ONNX Runtime says.
    """
    copy = graph.copy()
    inner = copy.model.graph
    made = [value for value in _computed(inner) if value.name and _is_array(value)]
    inner.outputs.extend(value for value in made if not value.is_graph_output())
    names = [str(value.name) for value in made]
    feeds, found = _run(copy, names, _small(graph, samples))
    kept, size = dict(feeds), 0
    for name, array in zip(names, found, strict=True):
        size += array.nbytes
        if size > limit:
            break
        kept[name] = array
    return kept


def _run(graph: Graph, names: Sequence[str], candidates: Iterator[Feeds]) -> tuple[Feeds, Sequence[np.ndarray]]:
    """The first feeds that the graph runs on, and what it answers."""
    why = "every sample has a fully masked row"
    try:
        runner, weights = reference_session(graph)
    except BertcError as error:
        raise DataError(str(error)) from error
    for feeds in candidates:
        try:
            return feeds, runner.run(names, {**weights, **feeds})
        except RunFailed as error:
            stop_if_exhausted(error)
            why = str(error).strip().splitlines()[0]
    raise DataError(why)


def small_feeds(graph: Graph, samples: Sequence[Sample]) -> Feeds:
    """Feeds of a few tokens, as `capture` would run the graph on. Raises DataError where no sample has a living row."""
    found = next(_small(graph, samples), None)
    if found is None:
        raise DataError("every sample has a fully masked row")
    return found


def _small(graph: Graph, samples: Sequence[Sample]) -> Iterator[Feeds]:
    """The largest of the cut samples of ids (the last of equals: its mask is the most awkward), then the smallest one whole."""
    whole = [sample.feeds for sample in samples if not sample.dead_rows]
    living = [feeds for sample in samples if _are_ids(sample.feeds) and not dead_rows(feeds := _cut(graph, sample))]
    if living:
        yield max(reversed(living), key=_elements)
    if whole:
        yield min(whole, key=_elements)


def _are_ids(feeds: Feeds) -> bool:
    return all(array.dtype.kind in "iub" for array in feeds.values())


def _elements(feeds: Feeds) -> int:
    return sum(array.size for array in feeds.values())


def _cut(graph: Graph, sample: Sample) -> Feeds:
    """Two rows of 16 places: by the names of the dimensions, so that what belongs together is cut together."""
    rows = next((dim for spec in graph.inputs for dim in spec.dims), None)

    def part(dim: int | str) -> slice:
        return slice(ROWS if dim == rows else LENGTH) if isinstance(dim, str) else slice(None)

    return {spec.name: sample.feeds[spec.name][tuple(part(dim) for dim in spec.dims)] for spec in graph.inputs}


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """What depends on an input. A weight that is transposed by a node does not: it would be held a second time."""
    fed = set(graph.inputs)
    for node in graph:
        if any(value in fed for value in node.inputs):
            fed.update(node.outputs)
            yield from node.outputs


def _is_array(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.numpy().kind in "fiub"
