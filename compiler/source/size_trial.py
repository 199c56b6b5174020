"""Runs of a source at chosen sizes of its dynamic dimensions: does it take them, and what does it say where not?"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from ..core import Dim, Feeds, Outputs, raise_unless_of_run
from ..data import choices_of, samples, turns
from ..data import synthetic as data
from ..graph import Graph

ABOVE = 16  # the smallest size; sizes below are often padded or broadcast
REFUSING = re.compile(r"running (\w+) node\. Name:'([^']*)'")  # as ONNX Runtime words it
NO_MEMORY = re.compile(r"allocat|bad_alloc", re.IGNORECASE)
SAID = 160  # characters of what the source said
# Sizes that sources are made for: powers of two and three quarters of them, whole frames of speech at 8 and 16 kHz.
USUAL = sorted({2**n for n in range(11)} | {3 * 2**n for n in range(9)} | {160 * n for n in range(1, 11)} | {400, 576, 16000})
EVERY = 1024  # each size up to this is tried before a search is given up
NUMBER = re.compile(r"\d+")

Sizes = Mapping[str, int]


@dataclasses.dataclass
class Trial:
    """A source that is run at sizes; each answer is kept."""

    graph: Graph
    dims: Mapping[str, Dim]
    run: Callable[[Feeds], Outputs]
    known: dict[tuple[tuple[str, int], ...], str] = dataclasses.field(default_factory=dict)
    words: dict[tuple[tuple[str, int], ...], str] = dataclasses.field(default_factory=dict)  # of the source, where it refused
    ways: int | None = None  # sets of feeds that show every number a graph asks for

    def refused(self, sizes: Sizes) -> str:
        """Why the source does not run at these sizes; "" where it does."""
        key = _key(sizes)
        if key not in self.known:
            self.known[key] = self._refused(sizes)
        return self.known[key]

    def _refused(self, sizes: Sizes) -> str:
        """Under every choice of a number that the graph asks for: each way of an If must take the sizes."""
        if self.ways is None:
            self.ways = turns(choices_of(self.graph))
        return next((why for turn in range(self.ways) if (why := self._refused_at(sizes, turn))), "")

    def _refused_at(self, sizes: Sizes, turn: int) -> str:
        try:
            answers = self.run(data.sample_at(self.graph, self.dims, sizes, turn=turn).feeds)
        except Exception as error:  # noqa: BLE001  a source in PyTorch raises whatever it likes
            if NO_MEMORY.search(str(error)) and not isinstance(error, MemoryError):
                return ""  # the machine's limit and not the model's: the export check runs into it again, and says so
            raise_unless_of_run(error)
            self.words[_key(sizes)] = str(error)
            named = REFUSING.search(str(error))
            return f"{named[1]} {named[2]!r} fails" if named else f"{type(error).__name__}: {_line(error)}"
        empty = [name for name, array in answers.items() if not array.size]
        return f"{empty[0]!r} is empty" if empty else ""

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """The shapes of the outputs at sizes that the source takes."""
        return {name: array.shape for name, array in self.run(data.sample_at(self.graph, self.dims, sizes).feeds).items()}

    def said(self, sizes: Sizes) -> str:
        """What the source said where it refused sizes, without what comes before its message."""
        text = (self.words.get(_key(sizes), "").strip().splitlines() or [""])[0]
        return text.rpartition("Status Message: ")[2][-SAID:]

    def usual(self) -> dict[str, int]:
        """A size of its own for each dimension, one row."""
        batches = samples.batch_dims(self.graph.inputs, self.dims)
        return {name: 1 if name in batches else _prime(dim, at) for at, (name, dim) in enumerate(self.dims.items())}

    def leading(self) -> list[str]:
        """The dimensions that stand first in inputs of more than one axis."""
        first = [spec.dims[0] for spec in self.graph.inputs if len(spec.dims) > 1]
        batches = samples.batch_dims(self.graph.inputs, self.dims)
        return list(dict.fromkeys([*(dim for dim in first if isinstance(dim, str) and dim in self.dims), *batches]))

    def candidates(self) -> Iterator[int]:
        """Sizes to try where the usual ones are refused: those it spoke of, those often wanted, then all."""
        said = next(reversed(self.words.values()), "")  # it often names the size that is wanted
        spoken = [int(number) for number in NUMBER.findall(said) if 1 < int(number) <= 2**16]
        yield from dict.fromkeys(itertools.chain(sorted(set(spoken)), USUAL, range(1, EVERY + 1)))


def _key(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:SAID]


def _prime(dim: Dim, at: int) -> int:
    """A prime for each dimension: where a source takes multiples alone, of whatever number, it refuses."""
    low, top = data.sizes_tried(dim)
    primes = (size for size in itertools.count(low + ABOVE) if all(size % each for each in range(2, math.isqrt(size) + 1)))
    return min(next(itertools.islice(primes, at, None)), top)
