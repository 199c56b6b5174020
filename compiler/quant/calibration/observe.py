"""Statistics of what the sites read, from one pass over the data, in memory that does not grow with the samples.

Beside calibration's statistics (histograms, channels) a few thousand rows of each GEMM's input are kept: only on rows can it be
measured what quantising an activation does to the product it goes into.

Samples are counted in blocks, and what a block gives depends on its number and its samples alone. So parts of the data that were
observed apart, by any number of machines, merge into what one pass over all of it gives, bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ...core import Advance, DataError, parse_json
from ...data import UnpaddedSample
from ...graph import Graph
from ..sites import GEMM, Sites
from .meter import Meter
from .statistics import COUNTS, MeasuredTensor, Statistics
from .tensors import tensors_to_measure

ROWS = 1024  # kept of each GEMM's input
BYTES = 192 * 2**20  # and no more than this of all of them
BLOCK = 64  # samples
SEED = 0


class Sampled(Statistics):
    """Calibration's counts of one tensor, and of a GEMM's input rows and the extremes of every channel beside them.

    `sums` are the channels' sums of each block, float64: added up only in the end, in the order of the blocks, because a sum of
    floats depends on its order. `keep`: rows in all; `each`: of one sample.
    """

    def __init__(self, place: MeasuredTensor, keep: int, each: int, block: int = 0) -> None:
        super().__init__(place)
        self._random = np.random.default_rng((SEED, block))
        self.keep, self.each = keep, each
        self._rows_kept = [np.zeros((0, place.channels), np.float32)]
        self.lows = np.full(place.channels, np.inf, np.float32)
        self.highs = np.full(place.channels, -np.inf, np.float32)
        self.sums = [np.zeros(place.channels)]
        self.seen = 0

    def add(self, *arrays: np.ndarray) -> None:
        """Count; and of each array keep a few rows [positions, channels], drawn at random."""
        super().add(*arrays)
        for array in arrays if self.keep else ():
            rows = self._rows(np.asarray(array, np.float32))
            if not len(rows):
                continue
            np.minimum(self.lows, rows.min(axis=0), out=self.lows)
            np.maximum(self.highs, rows.max(axis=0), out=self.highs)
            self.sums[-1] += rows.sum(axis=0, dtype=np.float64)
            self.seen += len(rows)
            self._keep(rows[self._random.choice(len(rows), min(self.each, len(rows)), replace=False)])

    def _keep(self, rows: np.ndarray) -> None:
        room = self.keep - sum(map(len, self._rows_kept))
        if room > 0:
            self._rows_kept.append(rows[:room].copy())  # a view would hold all of them

    def merge(self, other: Statistics) -> None:
        """Add what the blocks behind this one's saw of the same tensor."""
        super().merge(other)
        assert isinstance(other, Sampled)
        np.minimum(self.lows, other.lows, out=self.lows)
        np.maximum(self.highs, other.highs, out=self.highs)
        self.sums += other.sums
        self.seen += other.seen
        self._keep(other.rows)

    @property
    def rows(self) -> np.ndarray:
        """float32 [rows, channels]: drawn from all samples alike."""
        if len(self._rows_kept) > 1:
            self._rows_kept = [np.concatenate(self._rows_kept)]
        return self._rows_kept[0]

    @property
    def means(self) -> np.ndarray:
        total = np.zeros(self.place.channels)
        for part in self.sums:
            total += part
        return (total / max(1, self.seen)).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that was counted but for a few numbers (`numbers`)."""
        counted = {"counts": self.histogram.counts, "exponents": self.histogram.exponents, "channels": self.channels}
        return {**counted, "rows": self.rows, "lows": self.lows, "highs": self.highs, "sums": np.stack(self.sums)}

    def numbers(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in (*COUNTS, "low", "high", "seen", "keep", "each")}
        return {**counts, "place": dataclasses.asdict(self.place)}

    @staticmethod
    def read(numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Sampled:
        """What `numbers` and `arrays` gave. KeyError, TypeError or ValueError for others."""
        place = MeasuredTensor(**numbers["place"] | {"dims": tuple(numbers["place"]["dims"])})
        made = Sampled(place, int(numbers["keep"]), int(numbers["each"]))
        for name in (*COUNTS, "low", "high", "seen"):
            setattr(made, name, numbers[name])
        made.histogram.counts[...], made.histogram.exponents[...] = arrays["counts"], arrays["exponents"]
        made.channels, made.lows, made.highs = (np.array(arrays[name]) for name in ("channels", "lows", "highs"))
        made.sums, made._rows_kept = list(arrays["sums"]), [arrays["rows"]]
        return made


@dataclasses.dataclass(frozen=True)
class Observed:
    """By the name of a tensor; `samples` and `tokens` say of how much."""

    tensors: dict[str, Sampled]
    samples: int
    tokens: int


def observe_sites(
    graph: Graph, sites: Sites, samples: Iterator[UnpaddedSample], count: int, advance: Advance, first: int = 0
) -> Observed:
    """Run the graph over the samples, one at a time and unpadded.

    `count`: samples of all parts together. `first`: the block that these samples begin with.
    """
    gemms = {name for site in sites.found if site.kind == GEMM for name in site.inputs}
    wanted = list(dict.fromkeys(name for site in sites.found for name in site.inputs))
    found = {p.name: p for p in tensors_to_measure(graph, also=wanted) if p.name in set(wanted)}
    width = sum(found[name].channels for name in gemms) or 1
    keep = max(64, min(ROWS, BYTES // (4 * width)))
    each = max(1, -(-keep // max(1, count)))
    meter = Meter(graph, [found[name] for name in wanted])

    def fresh(block: int) -> Observed:
        return Observed({n: Sampled(found[n], keep if n in gemms else 0, each, block) for n in wanted}, 0, 0)

    parts: list[Observed] = [fresh(first)]
    for block in itertools.count(first) if wanted else ():
        seen, ran = _block(meter, itertools.islice(samples, BLOCK), fresh(block), (block - first) * BLOCK, count, advance)
        if not ran:
            break
        parts = [merge_parts([*parts, seen])] if block > first else [seen]
    return parts[0]


def _block(
    meter: Meter, samples: Iterator[UnpaddedSample], into: Observed, before: int, count: int, advance: Advance
) -> tuple[Observed, int]:
    """(`into` with what the samples hold, how many there were)."""
    live = tokens = done = 0
    for some in meter.ahead(samples):
        counted = [pair for pair in some if not pair[0].dead]
        meter.count(counted, into.tensors)
        done, live = done + len(some), live + len(counted)
        tokens += sum(row.tokens for row, _ in counted)
        advance(before + done, count)
    return Observed(into.tensors, live, tokens), done


def merge_parts(parts: Sequence[Observed]) -> Observed:
    """The parts, in this order, as one pass over all data would have observed them. The first is changed in place."""
    whole, *rest = parts
    for part in rest:
        for name, stats in part.tensors.items():
            whole.tensors[name].merge(stats)
    return Observed(whole.tensors, sum(part.samples for part in parts), sum(part.tokens for part in parts))


def require_samples(seen: Observed) -> Observed:
    """Raises DataError where every sample is padding only."""
    if seen.tensors and not seen.samples:
        raise DataError("nothing was measured: every sample is padding only; give data with tokens in it")
    return seen


def save(seen: Observed, path: Path) -> None:
    """Write what was observed; the bytes depend on the contents alone."""
    from safetensors.numpy import save_file

    arrays = {f"{name}/{key}": np.ascontiguousarray(a) for name, s in seen.tensors.items() for key, a in s.arrays().items()}
    head = {"samples": seen.samples, "tokens": seen.tokens, "tensors": {n: s.numbers() for n, s in seen.tensors.items()}}
    save_file(arrays, path, {"observed": json.dumps(head)})


class Head(TypedDict):
    samples: int
    tokens: int
    tensors: dict[str, Any]


def load(path: Path) -> Observed:
    """Read what `save` wrote. DataError for a file that is damaged, or none of these."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            head = parse_json(file.metadata()["observed"], Head, where=str(path), error=DataError)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        groups: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            name, _, part = key.rpartition("/")
            groups.setdefault(name, {})[part] = array
        tensors = {name: Sampled.read(numbers, groups[name]) for name, numbers in head["tensors"].items()}
        return Observed(tensors, int(head["samples"]), int(head["tokens"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a file of observed tensors ({error}); calibrate again") from error
