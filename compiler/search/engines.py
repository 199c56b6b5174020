"""Engines of candidates: compiled to be counted, and for ONNX Runtime opened to be timed in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import targets
from ..bench import interleaved
from ..compress import engine
from ..core import Advance, Dim, InputError, Missing, Shape, allowed_cores, scratch, wanted_threads
from ..distill import Encoded, Net
from ..graph import Graph, save_graph
from ..runtime import Runner
from .cost import Cost
from .request import Request

SECONDS = 60.0  # of timing, for all engines that take turns
FEWEST, MOST = 9, 60  # rounds


@dataclasses.dataclass(frozen=True)
class Bench:
    """What engines are made for: the target, the sizes of a batch, the threads of a session."""

    target: str
    shape: Shape
    threads: int
    seed: int
    times: bool  # whether a latency is asked for

    @property
    def runs(self) -> bool:
        """Whether engines run here, and not only compile."""
        return self.target == "onnxruntime"

    def facts(self) -> dict[str, Any]:
        return {"target": self.target, "shape": dict(self.shape.sizes), "threads": self.threads if self.runs else None}


def bench_of(net: Net, request: Request) -> Bench:
    """Raises Missing where the target's compiler is not installed, InputError for a shape that the model does not take."""
    ready = targets.get(request.target).available()
    if not ready.build:
        raise Missing(f"--target {request.target}: {ready.reason}. {ready.install}")
    dims = engine.dims_of(engine.module_of(net))
    shape = interleaved.parse_shapes((request.shape,), dims)[:2]
    if len(shape) != 1:
        raise InputError(f"--shape {request.shape!r}: costs hold for one shape; give one, as in 8x128")
    for name, size in shape[0].sizes:
        if size < 1 or size > (dims[name].max or size):
            raise InputError(f"--shape {request.shape}: {name} {size}; the model takes 1 to {dims[name].max or 'any number'}")
    threads = request.threads or wanted_threads() or len(allowed_cores())
    return Bench(request.target, shape[0], threads, request.seed, request.latency is not None)


@dataclasses.dataclass(frozen=True)
class Made:
    """One net compiled in one precision. `runner` is a session, None where the target does not run here."""

    cost: Cost
    runner: Runner | None


def made(net: Net, precisions: Sequence[str], bench: Bench, *, opened: bool | None = None) -> dict[str, Made]:
    """Export a net once and compile it in each precision; nothing of it stays on disk. The cost has no seconds yet.

    `opened`: with sessions; by default where they will be timed.
    """
    graph, dims = engine.fused(net)
    plain = engine.typed(graph, bench.target, "fp32")  # the products are the same in every precision
    flops = targets.graph_work(plain, None, bench.shape, 0).total().flops
    found = {}
    for mode in precisions:
        typed = engine.typed(graph, bench.target, mode)
        count = _kernels(typed, dims, mode, bench)
        runner = _opened(typed, bench) if (bench.times if opened is None else opened) else None
        found[mode] = Made(Cost(float("nan"), typed.initializer_bytes, flops, count), runner)
    return found


def _kernels(typed: Graph, dims: Mapping[str, Dim], mode: str, bench: Bench) -> int:
    if bench.runs:
        return sum(typed.op_counts().values())
    return engine.count(typed, dict(dims), bench.target, mode, dict(bench.shape.sizes)).kernels


def _opened(typed: Graph, bench: Bench) -> Runner:
    """A session with the options of an artifact, on as many threads as are asked for."""
    found = targets.onnxruntime
    described = {
        "inputs": [spec.to_json() for spec in typed.inputs],
        "outputs": [spec.to_json() for spec in typed.outputs],
        "profiles": [],
        "engine": {"session": {**found.SESSION, "intra_op_num_threads": bench.threads}},
    }
    with scratch() as folder:
        save_graph(typed, folder / "graph.onnx")
        return found.OnnxRuntimeRunner(folder / "graph.onnx", described)


def seconds(runners: Mapping[str, Runner], net: Net, bench: Bench, advance: Advance) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each session at the bench's shape, in turns; as many rounds as fit in SECONDS."""
    feeds = feeds_of(net, bench)
    calls = {}
    for name, runner in runners.items():
        mine = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.inputs}
        calls[name] = _call(runner, mine)
    once = sum(found[0] for found in interleaved.in_turns(calls, 1, bench.seed, lambda done, total: None).values())
    rounds = int(min(MOST, max(FEWEST, SECONDS / (2 * (once + len(calls) * interleaved.PAUSE)))))
    return interleaved.in_turns(calls, rounds, bench.seed, advance)


def _call(runner: Runner, feeds: dict[str, np.ndarray]) -> Any:
    return lambda: runner.run(feeds)


def feeds_of(net: Net, bench: Bench) -> dict[str, np.ndarray]:
    """A full batch, without padding."""
    sizes = tuple(size for _, size in bench.shape.sizes)
    rows = int(net.model.config.vocab_size)
    low = min(10, rows // 2)
    made = {name: np.ones(sizes, np.int64) for name in net.origin.inputs}
    made["input_ids"] = low + np.random.default_rng(bench.seed).integers(0, rows - low, sizes)
    if "token_type_ids" in made:
        made["token_type_ids"] = np.zeros(sizes, np.int64)
    return made


def outputs(runner: Runner, encoded: Encoded) -> np.ndarray:
    """The vectors that an engine gives for texts, [texts, width]."""
    order = np.argsort(encoded.lengths, kind="stable")
    found: dict[int, np.ndarray] = {}
    for chunk in _chunks(order):
        feeds = encoded.batch(chunk)
        mine = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.inputs}
        rows = next(iter(runner.run(mine).values()))
        found |= dict(zip(chunk.tolist(), rows.astype(np.float32), strict=True))
    return np.stack([found[at] for at in range(len(order))])


def _chunks(order: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(order), 32):
        yield order[start : start + 32]
