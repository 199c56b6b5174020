"""Latency of an artifact against its source or another artifact, in one run.

A round calls every contender once at every shape, in a random seeded order of shapes and contenders: what slows the machine for a
while slows all alike. Each timed call follows a pause and an untimed call, because the threads of the contender before go on
spinning for a while. All contenders have the same number of threads, and their outputs are compared before anything is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import targets
from ..artifact import Artifact
from ..core import Dim, InputError, Missing, Progress, Shape, VerifyFailed, allowed_cores, counted, scratch, wanted_threads
from ..data import Layout, Sample, padded_sample
from ..data import synthetic as data
from ..graph import Graph
from ..packing import zero_padding
from ..runtime import time_call
from ..source import GivenSource
from ..verification import DEFAULT_BUDGETS, Budget, Comparison, Ties, budget_for, budgets
from . import baselines, timings
from .baselines import Contender, Skipped
from .timings import BenchResult, Timing

ROUNDS, WARM_UP = 100, 3
PAUSE = 0.005  # seconds in which the threads of the contender before stop spinning
MOST_SHAPES = 8  # of a traffic
BUSY = 0.1  # share of the cores taken by others from which on a note says that the machine was busy


@dataclasses.dataclass(frozen=True)
class BenchRequest:
    """What `bertc bench` times. `threads` 0: OMP_NUM_THREADS, else one for each core that this process may use. `padded`: the
    artifact padded to its buckets is one more contender. `fill`: lengths of rows are log-normal, and padded."""

    against: tuple[GivenSource, ...] = ()
    shapes: tuple[Shape, ...] = ()
    rounds: int = ROUNDS
    threads: int = 0
    seed: int = 0
    padded: bool = False
    fill: float | None = None  # the share of positions with a token; None: no padding


def parse_shapes(texts: Sequence[str], dims: Mapping[str, Dim]) -> tuple[Shape, ...]:
    """`8x128` (in the order of the model's dims), or `batch=8,length=128`; several with spaces or commas between the first form.

    Raises InputError for a shape that is neither, or that has another number of dims than the model.
    """
    found = []
    for text in texts:
        parts = [text] if "=" in text else text.replace(",", " ").split()
        found += [_shape(part, dims) for part in parts]
    return tuple(dict.fromkeys(found))


def _shape(text: str, dims: Mapping[str, Dim]) -> Shape:
    named = "=" in text
    pairs = [part.partition("=")[::2] for part in text.split(",")] if named else list(zip(dims, text.split("x"), strict=False))
    sizes = {name.strip(): int(size) for name, size in pairs if size.strip().isdecimal()}
    count = len(text.split("," if named else "x"))
    if set(sizes) != set(dims) or count != len(dims):
        example = "x".join("8" if name == "batch" or dim.rows else "128" for name, dim in dims.items())
        raise InputError(f"shape {text!r} is not {'x'.join(dims)}, as in {example}, nor NAME=SIZE for each of them")
    return Shape(tuple((name, sizes[name]) for name in dims))


def default_shapes(found: Artifact) -> tuple[Shape, ...]:
    """For each profile the sizes it is tuned for, and those with a batch of 1."""
    shapes = []
    for profile in found.profiles:
        opt = {name: profile[name].opt for name in found.dims}
        rows = [name for name, dim in found.dims.items() if name == "batch" or dim.rows]
        low = opt | {name: profile[name].min for name in rows}
        shapes += [Shape(tuple(low.items())), Shape(tuple(opt.items()))]
    return tuple(dict.fromkeys(shapes))


def traffic_shapes(path: Path, found: Artifact) -> tuple[tuple[Shape, ...], str]:
    """(the shapes that compute the most tokens, weighted by their requests; what was left out), each request padded to the
    best buckets for this traffic. Raises what reading it raises."""
    from ..serve import buckets, traffic

    model = traffic.traffic_model(str(found.path))
    seen = traffic.read_traffic(path, model.longest, model.encode)
    plan = buckets.plan_buckets(seen, MOST_SHAPES, 8, model.longest)
    choice = plan.choices[buckets.choose_bucket_count(plan)[0]]
    bounds = np.asarray(choice.bounds)[np.searchsorted(choice.bounds, seen.longest)]
    weights: dict[tuple[tuple[str, int], ...], int] = {}
    for batch, bound, count in zip(seen.batch.tolist(), bounds.tolist(), seen.count.tolist(), strict=True):
        sizes = {model.batch: batch, model.length: bound}
        key = tuple((name, sizes[name]) for name in found.dims)
        weights[key] = weights.get(key, 0) + count
    shapes = sorted((Shape(sizes, weight) for sizes, weight in weights.items()), key=lambda s: (-s.tokens * s.weight, s.sizes))
    kept = shapes[:MOST_SHAPES]
    share = sum(s.tokens * s.weight for s in kept) / choice.computed
    lengths = ", ".join(map(str, choice.bounds))
    note = f"{path.name}: padded to lengths {lengths}; {len(kept)} of {counted(len(shapes), 'shape')}, {share:.0%} of the tokens"
    return tuple(kept), note


def why_not_runnable(found: Artifact) -> str:
    """Why the engine of an artifact cannot run on this machine, '' where it can."""
    if found.target == "null":
        return "the null target has no engine"
    ready = targets.get(found.target).available()
    return "" if ready.run else ready.reason


def time_artifact(found: Artifact, request: BenchRequest, progress: Progress | None = None) -> BenchResult:
    """Time an artifact and its contenders.

    Raises Missing where this machine cannot run it, DataError for a shape it does not take, InputError for impossible numbers,
    VerifyFailed where the outputs of two contenders differ by more than the budget of their precision.
    """
    log = progress or Progress()
    if reason := why_not_runnable(found):
        raise Missing(f"the engine of {found.path} (target {found.target}) cannot run here: {reason}")
    count = request.threads or wanted_threads() or len(allowed_cores())
    if request.rounds < 1 or count < 1:
        raise InputError(f"asked for {request.rounds} rounds on {count} threads; both are whole numbers from 1 on")
    samples = _samples(found, request)
    with scratch() as folder, baselines.torch_threads(count, bool(request.against)):
        with log.stage("open"):
            contenders, skipped = _contenders(found, request, samples, count, folder)
        for name, reason in skipped.items():
            log.note(f"not timed: {name}: {reason}")
        with log.stage("compare outputs and warm up"):
            calls = {each.name: [each.prepare(sample.feeds) for sample in samples] for each in contenders}
            agreement, told = _agree(contenders, samples, calls, found)
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        with log.stage("time") as advance, others() as busy:
            seconds = _rounds(calls, len(samples), request, advance)
    timed = tuple(Timing(c.name, shape, seconds[c.name][at]) for at, shape in enumerate(request.shapes) for c in contenders)
    conditions = _conditions(request, count, load, busy["share"])
    descriptions = {c.name: c.description for c in contenders}
    ratios, notes = _ratios(timed, contenders), (*told, *_notes(conditions))
    return BenchResult(found.path.name, timed, ratios, descriptions, skipped, agreement, conditions, notes)


def _samples(found: Artifact, request: BenchRequest) -> list[Sample]:
    if not request.shapes:
        raise InputError("no shape to time")
    graph = found.graph()
    samples = [data.sample_at(graph, found.dims, dict(shape.sizes), request.seed) for shape in request.shapes]
    if request.fill is None:
        return samples
    return [padded_sample(sample, graph, request.fill, request.seed) for sample in samples]


def _contenders(
    found: Artifact, request: BenchRequest, samples: Sequence[Sample], count: int, folder: Path
) -> tuple[list[Contender], dict[str, str]]:
    made: list[Contender | Skipped] = [baselines.artifact_contender(found, count)]
    if request.padded:
        made.append(baselines.artifact_contender(found, count, f"{found.path.name}, padded", padded=True))
    for at, given in enumerate(request.against):
        place = folder / str(at)
        place.mkdir()
        made += baselines.open_contenders(given, found, samples, count, place)
    contenders = [each for each in made if isinstance(each, Contender)]
    # The artifact against itself is a fair question: what the machine's noise looks like.
    numbered = [dataclasses.replace(c, name=_other_name(c.name, contenders[:i])) for i, c in enumerate(contenders)]
    return numbered, {each.name: each.reason for each in made if isinstance(each, Skipped)}


def _other_name(name: str, before: Sequence[Contender]) -> str:
    again = sum(c.name == name for c in before)
    return f"{name} ({again + 1})" if again else name


def _agree(
    contenders: Sequence[Contender], samples: Sequence[Sample], calls: Mapping[str, Sequence[Any]], found: Artifact
) -> tuple[dict[str, float], list[str]]:
    """(the largest relative difference of each contender's outputs from those of the source, or of the artifact without one,
    notes on labels that differ).

    Of a label or a rank, either of two choices is right where their scores are equal within the budget, as when it was built.
    """
    truth = next((c for c in contenders if c.source), contenders[0])
    others = [c for c in contenders if c is not truth]
    allowed = {c.name: budget_for(max(truth.precision, c.precision, key=coarseness), {}).without_decisions() for c in others}
    graph = found.graph(mapped=True)
    layout = Layout.of(graph.inputs, graph.outputs)
    compared = {name: _comparison(found.task, layout, graph, budget) for name, budget in allowed.items()}
    for at, sample in enumerate(samples):
        expected = truth.outputs(calls[truth.name][at]())
        for each in others:
            pair = expected, each.outputs(calls[each.name][at]())
            for side in (truth, each):
                pair = zero_padding(pair[0], sample.feeds, side.packing), zero_padding(pair[1], sample.feeds, side.packing)
            compared[each.name].add(*pair, sample)
    apart: dict[str, float] = {}
    notes: list[str] = []
    for name, comparison in compared.items():
        result = comparison.result()
        wrong = budgets.find_violations(result, allowed[name])
        if wrong:
            raise VerifyFailed(f"{name} and {truth.name} have different outputs, nothing was timed: {wrong[0]}")
        apart[name] = max(output.relative for output in result.outputs)
        notes += [
            f"{name}: {o.name!r} differs in {o.changed + o.tied} of {counted(o.vectors, 'value')}, {counted(o.tied, 'tie')}"
            for o in result.outputs
            if o.changed or o.tied
        ]
    return apart, notes


def coarseness(precision: str) -> int:
    """Where a precision stands among all of them, the finest first."""
    return list(DEFAULT_BUDGETS).index(precision)


def _comparison(task: str, layout: Layout, graph: Graph, budget: Budget) -> Comparison:
    return Comparison(task, layout=layout, ties=Ties(graph, budgets.choice_tolerance(budget)))


def _rounds(calls: Mapping[str, Sequence[Any]], shapes: int, request: BenchRequest, advance: Any) -> dict[str, list[np.ndarray]]:
    """Seconds [rounds] of every contender at every shape."""
    order = random.Random(request.seed)
    taken = {name: [np.empty(request.rounds) for _ in range(shapes)] for name in calls}
    for number in range(-WARM_UP, request.rounds):
        for at in order.sample(range(shapes), shapes):
            for name in order.sample(list(calls), len(calls)):
                seconds = _timed(calls[name][at])
                if number >= 0:
                    taken[name][at][number] = seconds
        advance(number + WARM_UP + 1, request.rounds + WARM_UP)
    return taken


def in_turns(calls: Mapping[str, Any], rounds: int, seed: int, advance: Any) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each call, in a random order in every round."""
    found = _rounds({name: [call] for name, call in calls.items()}, 1, BenchRequest(rounds=rounds, seed=seed), advance)
    return {name: taken[0] for name, taken in found.items()}


def _timed(call: Any) -> float:
    time.sleep(PAUSE)
    call()
    return time_call(call)


def _ratios(timed: Sequence[Timing], contenders: Sequence[Contender]) -> tuple[timings.Ratio, ...]:
    first, *others = ([t for t in timed if t.contender == c.name] for c in contenders)
    found = [timings.time_ratio(a, b) for other in others for a, b in zip(first, other, strict=True)]
    if all(t.shape.weight for t in first):
        found += [timings.traffic_ratio(first, other) for other in others]
    return tuple(found)


@contextlib.contextmanager
def others() -> Iterator[dict[str, float | None]]:
    """The share of all cores that other processes took in the block; None where the system does not say (no /proc/stat)."""
    found: dict[str, float | None] = {"share": None}
    before = _cpu()
    yield found
    after = _cpu()
    if before and after and after[0] > before[0]:
        whole, busy, own = (b - a for a, b in zip(before, after, strict=True))
        found["share"] = min(1.0, max(0.0, (busy - own) / whole))


def _cpu() -> tuple[float, float, float] | None:
    """Seconds since the machine started, over all cores: passed, not idle, and of this process."""
    try:
        line = Path("/proc/stat").read_text("ascii").splitlines()[0].split()
    except OSError:
        return None
    ticks = [int(n) / os.sysconf("SC_CLK_TCK") for n in line[1:9]]  # guest time is in user time already
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4], sum(os.times()[:2])


def _conditions(request: BenchRequest, count: int, load: float | None, share: float | None) -> dict[str, Any]:
    return {
        "rounds": request.rounds,
        "warm_up": WARM_UP,
        "seed": request.seed,
        "fill": request.fill,
        "threads": count,
        "threads_by": "--threads" if request.threads else "OMP_NUM_THREADS" if wanted_threads() else "cores",
        "cores_allowed": allowed_cores(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": load,
        "cores_taken_by_others": share,
    }


def _notes(conditions: Mapping[str, Any]) -> tuple[str, ...]:
    share = conditions["cores_taken_by_others"]
    notes = []
    if share is not None and share > BUSY:
        notes.append(f"busy machine: other processes took {share:.0%} of the cores; times and ratios may be off")
    if share is None:
        notes.append("load by other processes unknown (no /proc/stat): the machine may have been busy")
    if conditions["rounds"] < timings.MIN_CALLS["p99"]:
        notes.append(f"no p99: it needs {timings.MIN_CALLS['p99']} rounds, this had {conditions['rounds']}")
    if conditions["threads"] > len(conditions["cores_allowed"]):
        notes.append(f"{conditions['threads']} threads share {counted(len(conditions['cores_allowed']), 'core')}")
    return tuple(notes)


def conditions_line(result: BenchResult) -> str:
    """The conditions of a run in a line: rounds, threads, load."""
    c = result.conditions
    given = "" if c["threads_by"] == "cores" else f" ({c['threads_by']})"
    threads = f"{counted(c['threads'], 'thread')} each{given}"
    cores = f"{threads}, {len(c['cores_allowed'])} of {counted(c['cores'] or 1, 'core')} allowed"
    taken = c["cores_taken_by_others"]
    others = "" if taken is None else f", {taken:.0%} of the machine taken by others"
    load = "" if c["load_before"] is None else f", load {c['load_before']:.1f} before"
    fill = f"; {c['fill']:.0%} of the positions are tokens, lengths log-normal" if c.get("fill") else ""
    return f"{counted(c['rounds'], 'interleaved round')} after {c['warm_up']} to warm up; {cores}{others}{load}{fill}"
