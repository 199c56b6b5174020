"""The times of batches, measured in the workers that will run them, all of them at once: they share memory and cores."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from ..artifact import Artifact
from ..core import Feeds, InputError, Progress
from ..data import batch_dim, padded_sample, synthetic
from .batches import Batching
from .cost import CostModel
from .pool import Pool
from .trial import distance

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32)
MOST_TOKENS = 2048  # of one batch; what is larger takes in proportion
PACKED_FILL = 0.5
ROUNDS = (2, 9)
SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A batch that is timed: its place in the table, its feeds, and its tokens without padding."""

    at: tuple[int, int]
    feeds: Feeds
    tokens: int


def sizes_of(found: Artifact) -> tuple[str, str | None]:
    """(what the length is called, what the batch is called). InputError for a model with other dimensions."""
    batch = batch_dim(found.inputs, found.dims)
    others = [name for name in found.dims if name != batch]
    if len(others) != 1:
        named = ", ".join(others) or "none"
        raise InputError(f"{found.path} has the dimensions {named} beside the batch; serving needs exactly one, the length")
    return others[0], batch if batch in found.dims else None


async def measure(found: Artifact, pool: Pool, name: str, workers: int, threads: int, log: Progress) -> CostModel:
    """Time batches of the loaded model `name` in `workers` workers at once: medians of interleaved rounds, within SECONDS."""
    length, batch = sizes_of(found)
    packed = "packing" in found.manifest
    points, lengths, batches = _points(found, length, batch, packed)
    taken: dict[tuple[int, int], list[float]] = {point.at: [] for point in points}
    for point in points:  # to warm up
        await pool.run(name, point.feeds)
    start = time.perf_counter()
    with log.stage(f"measure the times of {found.path.name}") as advance:
        for number in range(ROUNDS[1]):
            if number >= ROUNDS[0] and time.perf_counter() - start > SECONDS:
                break
            for point in points:
                taken[point.at] += await asyncio.gather(*(_timed(pool, name, point.feeds) for _ in range(workers)))
            advance(number + 1, ROUNDS[1])
    medians = {at: float(np.median(each)) for at, each in taken.items()}
    if packed:
        order = sorted({point.tokens: medians[point.at] for point in points}.items())
        sizes, times = (np.asarray(each) for each in zip(*order, strict=True))
        return CostModel(sizes, np.array([1]), np.maximum.accumulate(times)[None], True, workers=workers, threads=threads)
    return CostModel(batches, lengths, _table(medians, lengths, batches), workers=workers, threads=threads)


async def _timed(pool: Pool, name: str, feeds: Feeds) -> float:
    """Seconds from handing a batch over to its answer: what a worker is taken for, the way there and back included."""
    start = time.perf_counter()
    await pool.run(name, feeds)
    return time.perf_counter() - start


def _points(found: Artifact, length: str, batch: str | None, packed: bool) -> tuple[list[Point], np.ndarray, np.ndarray]:
    limits = found.dims[length]
    top = limits.max or LENGTHS[-1]
    lengths = sorted({min(max(n, limits.min), top) for n in (LENGTHS if top >= LENGTHS[0] else (top,))})
    if limits.min > LENGTHS[-1]:  # recordings: samples, not tokens
        lengths = [n for n in (limits.min * 2**k for k in range(6)) if n <= top] or [limits.min]
    rows = [n for n in BATCHES if batch is not None and found.dims[batch].min <= n <= (found.dims[batch].max or n)] or [1]
    graph = found.graph(mapped=True)
    made = []
    for i, long in enumerate(lengths):
        for j, count in enumerate(rows):
            if j and long * count > MOST_TOKENS * max(1, lengths[0] // LENGTHS[-1]):
                continue
            sample = synthetic.sample_at(graph, found.dims, {length: long} | ({batch: count} if batch else {}), 7)
            if packed and count > 1:
                sample = padded_sample(sample, graph, PACKED_FILL, 7)
            masks = [array for key, array in sample.feeds.items() if "mask" in key]
            made.append(Point((i, j), sample.feeds, int(masks[0].sum()) if packed and masks else long * count))
    return made, np.asarray(lengths), np.asarray(rows)


def _table(medians: dict[tuple[int, int], float], lengths: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Seconds [lengths, batches]; batches beyond the limit of tokens take in proportion to their rows."""
    table = np.empty((len(lengths), len(batches)))
    for i in range(len(lengths)):
        for j in range(len(batches)):
            table[i, j] = medians[i, j] if (i, j) in medians else table[i, j - 1] * batches[j] / batches[j - 1]
    return table


async def padding_error(found: Artifact, pool: Pool, name: str, batching: Batching) -> float:
    """How far the outputs of a short row are from its own when it shares a batch with a longer one, relative to its largest."""
    length, batch = sizes_of(found)
    if batching.length is None or batch is None:
        return 0.0
    limits = found.dims[length]
    graph = found.graph(mapped=True)
    sizes = [max(limits.min, 9), max(limits.min, min(limits.max or 40, 40))]
    rows: Sequence[Feeds] = [
        synthetic.sample_at(graph, found.dims, {length: n, batch: 1}, at).feeds for at, n in enumerate(sizes)
    ]
    alone, _ = await pool.run(name, rows[0])
    together, _ = await pool.run(name, batching.stack(rows))
    own = batching.split(together, rows)[0]
    return max((distance(own[key], value) for key, value in alone.items()), default=0.0)
