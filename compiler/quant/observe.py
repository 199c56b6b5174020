"""What the sites see: one pass over the data, in memory that the number of samples does not change.

Beside calibration's statistics (histograms, channels) a few thousand rows of each GEMM's input are kept: only on rows can it be
measured what quantising an activation does to the product it goes into.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..errors import DataError
from ..graph import Graph
from ..meter import Meter
from ..places import places
from ..progress import Advance
from ..rows import Row
from ..tensor_stats import Place, Statistics
from .sites import GEMM, Sites

ROWS = 1024  # kept of each GEMM's input
BYTES = 192 * 2**20  # and no more than this of all of them
SEED = 0


class Sampled(Statistics):
    """Calibration's counts of one tensor, and of a GEMM's input rows and the extremes of every channel beside them."""

    def __init__(self, place: Place, keep: int, each: int) -> None:
        super().__init__(place)
        self._random = np.random.default_rng(SEED)
        self._each, self._kept = each, 0
        self._rows_kept = np.zeros((keep, place.channels), np.float32)
        self.lows = np.full(place.channels, np.inf, np.float32)
        self.highs = np.full(place.channels, -np.inf, np.float32)
        self.sums = np.zeros(place.channels)
        self.seen = 0

    def add(self, *arrays: np.ndarray) -> None:
        """Count; and of each array keep a few rows [places, channels], drawn at random."""
        super().add(*arrays)
        for array in arrays if len(self._rows_kept) else ():
            rows = self._rows(np.asarray(array, np.float32))
            if not len(rows):
                continue
            np.minimum(self.lows, rows.min(axis=0), out=self.lows)
            np.maximum(self.highs, rows.max(axis=0), out=self.highs)
            self.sums += rows.sum(axis=0, dtype=np.float64)
            self.seen += len(rows)
            count = min(self._each, len(rows), len(self._rows_kept) - self._kept)
            self._rows_kept[self._kept : self._kept + count] = rows[self._random.choice(len(rows), count, replace=False)]
            self._kept += count

    @property
    def rows(self) -> np.ndarray:
        """float32 [rows, channels]: drawn from all samples alike."""
        return self._rows_kept[: self._kept]

    @property
    def means(self) -> np.ndarray:
        return (self.sums / max(1, self.seen)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Observed:
    """By the name of a tensor; `samples` and `tokens` say of how much."""

    tensors: dict[str, Sampled]
    samples: int
    tokens: int


def observe(graph: Graph, sites: Sites, samples: Iterator[Row], count: int, advance: Advance) -> Observed:
    """Run the graph over the samples, one at a time and unpadded. DataError where not one of them holds a place that counts."""
    gemms = {name for site in sites.found if site.kind == GEMM for name in site.inputs}
    wanted = list(dict.fromkeys(name for site in sites.found for name in site.inputs))
    found = {p.name: p for p in places(graph, also=wanted) if p.name in set(wanted)}
    width = sum(found[name].channels for name in gemms) or 1
    keep = max(64, min(ROWS, BYTES // (4 * width)))
    each = max(1, -(-keep // max(1, count)))
    made = {name: Sampled(found[name], keep if name in gemms else 0, each) for name in wanted}
    done = live = tokens = 0
    if not wanted:
        return Observed({}, 0, 0)
    meter = Meter(graph, [found[name] for name in wanted])
    for some in meter.ahead(samples):
        counted = [pair for pair in some if not pair[0].dead]
        meter.count(counted, made)
        done, live = done + len(some), live + len(counted)
        tokens += sum(row.tokens for row, _ in counted)
        advance(done, count)
    if not live:
        raise DataError("nothing was measured: every sample is padding only")
    return Observed(made, live, tokens)
