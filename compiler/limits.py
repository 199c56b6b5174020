"""How long an input of an .onnx file may be, where nothing in the file says it: a table of positions has an end.

A checkpoint has a config that tells; of a graph it is measured: it is run at the largest size that is ever tried, and where it
refuses, the largest that it takes is searched for. Batches are not: a batch that a graph does not take is a fault to be told.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping

from . import data
from .errors import BertcError
from .graph import Graph
from .profiles import Dim
from .runner import Feeds, Outputs

ODD = 15  # above the smallest size; and a size of its own for each dimension
REFUSING = re.compile(r"running (\w+) node\. Name:'([^']*)'")  # as ONNX Runtime words it


def measured(graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs]) -> tuple[dict[str, Dim], list[str]]:
    """`dims` with the limits that were found, and a note of each. A graph that runs at no size is left to the export's check."""
    batch, found, notes = data.batch_dim(graph.inputs, dims), dict(dims), []
    open_ended = [name for name, dim in dims.items() if dim.max is None and name != batch]
    usual = {name: 1 if name == batch else _odd(dim, at) for at, (name, dim) in enumerate(dims.items())}
    for name, largest, why in _limits(graph, dims, usual, open_ended, run):
        found[name] = dataclasses.replace(dims[name], max=largest)
        notes.append(f"{name}: at most {largest}, the largest size that the model runs at: {why}")
    return found, notes


def _odd(dim: Dim, at: int) -> int:
    low, top = data.sizes_tried(dim)
    return min(low + ODD + 2 * at, top)


def _limits(
    graph: Graph, dims: Mapping[str, Dim], usual: Mapping[str, int], names: list[str], run: Callable[[Feeds], Outputs]
) -> Iterator[tuple[str, int, str]]:
    """(dimension, largest size, why no larger one) of each that has a limit."""

    def refused(name: str, size: int) -> str:
        try:
            run(data.at(graph, dims, {**usual, name: size}).feeds)
        except (BertcError, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises a dozen classes of its own
            named = REFUSING.search(str(error))
            return f"{named[1]} {named[2]!r} fails at {size}" if named else f"{type(error).__name__} at {size}"
        return ""

    for name in names:
        top = data.sizes_tried(dims[name])[1]
        why = refused(name, top)
        if not why or refused(name, usual[name]):
            continue
        sizes = range(usual[name], top + 1)
        first = sizes[bisect.bisect_left(sizes, True, key=functools.partial(_fails, refused, name))]
        yield name, first - 1, refused(name, first)


def _fails(refused: Callable[[str, int], str], name: str, size: int) -> bool:
    return bool(refused(name, size))
