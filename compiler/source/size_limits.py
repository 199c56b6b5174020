"""How short and how long an input of an .onnx file may be, where nothing in the file says it: a table of positions has an end,
and a frame of speech takes some samples.

A checkpoint has a config that tells; of a graph it is measured: it is run at the smallest and at the largest size that are ever
tried, and where it refuses one, or answers with nothing, the first size that it takes is searched for. Batches are not: a batch
that a graph does not take is a fault to be told.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Mapping

from ..core import BertcError, Dim, Feeds, Outputs
from ..data import samples
from ..data import synthetic as data
from ..graph import Graph

ODD = 15  # above the smallest size; and a size of its own for each dimension
REFUSING = re.compile(r"running (\w+) node\. Name:'([^']*)'")  # as ONNX Runtime words it
NO_MEMORY = re.compile(r"allocat|bad_alloc", re.IGNORECASE)


def measure_limits(graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs]) -> tuple[dict[str, Dim], list[str]]:
    """`dims` with the limits that were found, and a note of each. A graph that runs at no size is left to the export check."""
    batch = samples.batch_dim(graph.inputs, dims)
    usual = {name: 1 if name == batch else _odd(dim, at) for at, (name, dim) in enumerate(dims.items())}
    found, notes = dict(dims), []
    for name in (name for name, dim in dims.items() if dim.max is None and name != batch):
        search = _Search(graph, dims, usual, name, run)
        low, why = search.until(dims[name].min)
        high, why_not = search.until(data.sizes_tried(dims[name])[1])
        if why:
            found[name] = dataclasses.replace(found[name], min=low)
            notes.append(f"dimension {name}: minimum {low} ({why})")
        if why_not:
            found[name] = dataclasses.replace(found[name], max=high)
            notes.append(f"dimension {name}: maximum {high} ({why_not})")
    return found, notes


def _odd(dim: Dim, at: int) -> int:
    low, top = data.sizes_tried(dim)
    return min(low + ODD + 2 * at, top)


@dataclasses.dataclass(frozen=True)
class _Search:
    """Along one dimension, the others at their usual sizes."""

    graph: Graph
    dims: Mapping[str, Dim]
    usual: Mapping[str, int]
    name: str
    run: Callable[[Feeds], Outputs]

    def until(self, end: int) -> tuple[int, str]:
        """(the last size from the usual one to `end` that runs, why the next does not): `end` and "" where all of them run, or
        where the usual one does not."""
        usual = self.usual[self.name]
        if not self.refused(end) or self.refused(usual):
            return end, ""
        step = 1 if end > usual else -1
        sizes = range(usual, end + step, step)
        first = bisect.bisect_left(sizes, True, key=lambda size: bool(self.refused(size)))
        return sizes[first - 1], self.refused(sizes[first])

    def refused(self, size: int) -> str:
        """Why a size does not run; "" where it does."""
        try:
            answers = self.run(data.sample_at(self.graph, self.dims, {**self.usual, self.name: size}).feeds)
        except (BertcError, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  ONNX Runtime raises a dozen classes of its own
            if NO_MEMORY.search(str(error)):
                return ""  # the machine's limit and not the model's: the export check runs into it again, and says so
            named = REFUSING.search(str(error))
            return f"{named[1]} {named[2]!r} fails at {size}" if named else f"{type(error).__name__} at {size}"
        empty = [name for name, array in answers.items() if not array.size]
        return f"{empty[0]!r} is empty at {size}" if empty else ""
