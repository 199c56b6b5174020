"""The costs of all candidates from a few engines: a measured table of layer costs, and of embedding and pooling, to be summed.

A row of it is one layer of some heads and FFN neurons in one precision. It is measured in place, in an engine of several such
layers, less what is not layers, and not alone: there its weights would stay in a cache that they share with others later. Heads
and neurons are measured one after the other (they share no product), so sizes times precisions are a few dozen engines. Latency
tables of blocks: Cai et al., "ProxylessNAS", 2019, section 3.3, and Wu et al., "FBNet", 2019, section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..core import Progress, available_bytes
from ..distill import Net
from . import engines
from .cost import Cost
from .engines import Bench, Made
from .space import Candidate, Space
from .supernet import cut_out

STACK = 6  # layers of an engine that measures one kind of layer, at most
SHARE = 3  # of the memory that is free, one part in so many for engines that take turns
NOTHING = Cost(0.0, 0.0, 0.0, 0.0)
Sizes = tuple[int, int]  # heads, FFN neurons of a layer


@dataclasses.dataclass(frozen=True)
class Table:
    """Costs by precision: of what is no layer, and of a layer of each size. `reference`: the seconds of a stack of whole layers,
    that later timings are held against."""

    base: Mapping[str, Cost]
    layers: Mapping[str, Mapping[Sizes, Cost]]
    reference: float

    def of(self, candidate: Candidate) -> Cost:
        """The sum for a candidate."""
        rows, total = self.layers[candidate.precision], self.base[candidate.precision]
        most = max(rows)
        for heads, ffn in zip(candidate.heads, candidate.ffn, strict=True):
            # What fewer heads save and what fewer neurons save, both of a whole layer.
            total = total + _floor(rows[heads, most[1]] + rows[most[0], ffn] - rows[most])
        return total

    def to_json(self) -> list[dict[str, Any]]:
        """Its rows."""
        made = []
        for precision, rows in self.layers.items():
            made.append({"precision": precision, "heads": None, "ffn": None, **self.base[precision].to_json()})
            made += [{"precision": precision, "heads": h, "ffn": f, **cost.to_json()} for (h, f), cost in rows.items()]
        return made

    def state(self) -> dict[str, Any]:
        """All of it, exactly, for a search that goes on later."""
        layers = {p: [[*sizes, *dataclasses.astuple(cost)] for sizes, cost in rows.items()] for p, rows in self.layers.items()}
        return {"base": {p: dataclasses.astuple(c) for p, c in self.base.items()}, "layers": layers, "reference": self.reference}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Table:
        layers = {p: {(h, f): Cost(*cost) for h, f, *cost in rows} for p, rows in state["layers"].items()}
        return cls({p: Cost(*c) for p, c in state["base"].items()}, layers, state["reference"])


def _floor(cost: Cost) -> Cost:
    """Timings have noise: no layer takes less than no time."""
    return dataclasses.replace(cost, seconds=max(cost.seconds, 0.0)) if cost.seconds == cost.seconds else cost


def stacks(space: Space) -> dict[tuple[Sizes, int], Candidate]:
    """What is compiled: stacks of one kind of layer, by (sizes of a layer, layers), the whole ones first; fp32 stands for any."""
    depth = min(space.depth, STACK)
    whole = (space.heads[-1], space.ffn[-1])
    sizes = [whole, *((h, whole[1]) for h in space.heads[:-1]), *((whole[0], f) for f in space.ffn[:-1])]
    keys: list[tuple[Sizes, int]] = [(each, depth) for each in sizes]
    if depth > 1:
        keys.insert(1, (whole, 1))
    return {key: _stack(space, *key) for key in keys}


def _stack(space: Space, sizes: Sizes, depth: int) -> Candidate:
    heads, ffn = ([each] * space.depth for each in sizes)
    return space.made(range(depth), heads, ffn, space.precisions[0])


def measure(net: Net, space: Space, bench: Bench, log: Progress) -> Table:
    """Compile the stacks, time them in turns where they run here, and take them apart into rows."""
    wanted = stacks(space)
    found: dict[tuple[Sizes, int, str], Cost] = {}
    first = next(iter(wanted))
    with log.stage("cost of layers") as advance:
        reference = engines.made(cut_out(net, wanted[first]), space.precisions, bench)
        chunks = _chunks(wanted, reference, bench)
        times: list[float] = []
        for at, chunk in enumerate(chunks):
            built = {key: reference if key == first else _made(net, wanted[key], space, bench) for key in chunk}
            costs, seen = _timed(built, reference, net, space, bench)
            found |= costs
            times.append(seen)
            advance(at + 1, len(chunks))
    return _taken_apart(found, space, float(np.median(times)))


def _made(net: Net, candidate: Candidate, space: Space, bench: Bench) -> dict[str, Made]:
    return engines.made(cut_out(net, candidate), space.precisions, bench)


def _chunks(wanted: Iterable[Any], reference: Mapping[str, Made], bench: Bench) -> list[list[Any]]:
    """As many stacks at a time as leave most of the memory free: with the packed copies of its kernels a session has its weights
    about twice."""
    keys = list(wanted)
    free = available_bytes()
    held = 2 * sum(each.cost.weight_bytes for each in reference.values())
    at_once = len(keys) if free is None or not bench.times else max(2, int(free / SHARE / max(held, 1)))
    return [keys[start : start + at_once] for start in range(0, len(keys), at_once)]


def _timed(
    built: Mapping[Any, Mapping[str, Made]], reference: Mapping[str, Made], net: Net, space: Space, bench: Bench
) -> tuple[dict[tuple[Sizes, int, str], Cost], float]:
    """Costs of stacks, and the seconds of the reference: those of a stack are its ratio to the reference in the same rounds."""
    named = {(*key, mode): each for key, modes in built.items() for mode, each in modes.items()}
    if not bench.times:
        return {key: each.cost for key, each in named.items()}, float("nan")
    runners = {str(key): each.runner for key, each in named.items() if each.runner is not None}
    beside = reference[space.precisions[0]].runner
    assert beside is not None, "made() opens sessions that are timed"
    taken = engines.seconds({**runners, "reference": beside}, net, bench, lambda done, total: None)
    base = taken["reference"]
    middle = float(np.median(base))
    costs = {}
    for key, each in named.items():
        seconds = float(np.median(taken[str(key)] / base)) * middle
        costs[key] = dataclasses.replace(each.cost, seconds=seconds)
    return costs, middle


def _taken_apart(found: Mapping[tuple[Sizes, int, str], Cost], space: Space, reference: float) -> Table:
    base: dict[str, Cost] = {}
    layers: dict[str, dict[Sizes, Cost]] = {}
    depth, whole = min(space.depth, STACK), (space.heads[-1], space.ffn[-1])
    for mode in space.precisions:
        stack = found[whole, depth, mode]
        # Of a model of one layer nothing can be told apart: all of it is the layer, which every candidate has.
        layer = (stack - found[whole, 1, mode]).times(1 / (depth - 1)) if depth > 1 else stack
        base[mode] = _floor(stack - layer.times(depth))
        mine = {sizes: cost for (sizes, count, each), cost in found.items() if each == mode and count == depth}
        layers[mode] = {sizes: (cost - base[mode]).times(1 / depth) for sizes, cost in mine.items()}
    return Table(base, layers, reference)
