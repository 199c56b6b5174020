"""Static and dynamic int8 on ONNX Runtime against float32: timed on this machine, judged on held-out rows.

Which form is faster depends on the CPU and on the shape: the static one skips finding ranges, the dynamic one has larger kernels
in ONNX Runtime. So it is measured where the build runs, at the first profile's best shape, in turns, so that what else the
machine does disturbs all alike.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Feeds, scratch
from ..data import Layout
from ..graph import Graph, save_graph
from ..runtime import Runner, time_call
from ..source import Source
from ..targets import onnxruntime
from ..verification import DEFAULT_BUDGETS, Truth, budget_for, find_broken_limits
from .dynamic import dynamic_int8
from .request import LowBitRequest
from .search import CurvePoint, point_of, within_limit
from .static import StaticGraph, opt_feeds

MIN_GAIN = 1.05  # medians of one form on a busy machine differ by some percent: a gain below is none
TIMING_SECONDS, MIN_ROUNDS, MAX_ROUNDS = 1.5, 5, 50
FLOAT, STATIC, DYNAMIC = "fp32", "static", "dynamic"
ANYWAY = "--int8 static or --int8 dynamic builds int8 anyway"


@dataclasses.dataclass(frozen=True)
class TimedChoice:
    """`seconds`: float64 [rounds] of each form. `points`: the metric of each int8 form. `within`: the forms within the budget.

    `kept`: fp32, static or dynamic. `graph`: that of the form that is kept. `over`: why a form is over the budget, where its
    verification would fail.
    """

    graph: Graph
    kept: str
    why: str
    seconds: Mapping[str, np.ndarray]
    points: Mapping[str, CurvePoint]
    within: frozenset[str]
    shape: str
    over: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """One line: the choice, and the median time and metric of each form."""
        forms = (f"{name} {1e3 * median(calls):.1f} ms{self._judged(name)}" for name, calls in self.seconds.items())
        rounds = len(self.seconds[FLOAT])
        return f"{self.why}; medians of {rounds} rounds at {self.shape} on this machine: {', '.join(forms)}"

    def _judged(self, name: str) -> str:
        if name not in self.points:
            return ""
        measure = self.points[name].measure
        why = f": {self.over[name]}" if self.over.get(name) else ""
        return f" ({measure.name} {measure.artifact:.5f}{'' if name in self.within else f', over the budget{why}'})"

    def to_json(self) -> dict[str, Any]:
        base = median(self.seconds[FLOAT])
        rows = {
            name: {
                "ms": round(1e3 * median(calls), 6),
                "times_fp32": round(base / median(calls), 3),
                **({"within": name in self.within, **self.points[name].to_json()} if name in self.points else {}),
            }
            for name, calls in self.seconds.items()
        }
        shared = {"shape": self.shape, "rounds": len(self.seconds[FLOAT]), "margin": MIN_GAIN}
        return {"forms": rows, **shared, "kept": self.kept, "why": self.why}


def time_forms(graph: Graph, source: Source, made: StaticGraph, request: LowBitRequest) -> TimedChoice:
    """Time and judge float32, the static form where the budget left any, and the dynamic one. `graph` is float32.

    `times_fp32` in the JSON: how many times as fast as float32.
    """
    graphs = {FLOAT: graph, **({STATIC: made.graph} if made.chosen else {}), DYNAMIC: dynamic_int8(graph, request.bits)}
    feeds = opt_feeds(graph, source, request.profiles)
    with scratch() as folder:
        runners = {name: _runner(each, folder / f"{name}.onnx") for name, each in graphs.items()}
        seconds = _time_in_turns(runners, feeds)
        points = {name: point_of(made.judge.compare(runner.run)) for name, runner in runners.items() if name != FLOAT}
        broken = {name: _what_breaks(runners[name], source, made.truth, request) for name in points}
    over = {name: broken[name] for name, point in points.items() if broken[name] or not within_budget(point, request.max_drop)}
    within = frozenset(points) - over.keys()
    kept, why = choose_form({name: median(calls) for name, calls in seconds.items()}, within)
    shape = "x".join(map(str, next(iter(feeds.values())).shape))
    return TimedChoice(graphs[kept], kept, why, seconds, points, within, shape, over)


def _what_breaks(runner: Runner, source: Source, rows: Truth | None, request: LowBitRequest) -> str:
    """Why the verification at the end of the build would fail with a form; '' where it would not, or where there is none."""
    if request.goldens is None:
        return ""
    budget, layout = budget_for("int8", request.limits), Layout.of(source.graph.inputs, source.graph.outputs)
    for truth in (request.goldens, rows):
        if truth is not None and (found := find_broken_limits(runner, truth, source.task, budget, layout)):
            return f"{found[0]} on {truth.name}"
    return ""


def within_budget(point: CurvePoint, max_drop: float | None) -> bool:
    """Whether the limit is shown to be kept; without one, whether nothing collapsed."""
    if max_drop is not None:
        return within_limit(point, max_drop)  # measured on all rows, as the form that was searched is
    collapse = DEFAULT_BUDGETS["int8"].collapse
    return collapse is None or point.measure.low is None or point.measure.low <= collapse


def choose_form(medians: Mapping[str, float], within: Collection[str]) -> tuple[str, str]:
    """(the form to build, why): the fastest of those within the budget, if it gains more than the margin over float32."""
    forms = [name for name in medians if name in within]
    if not forms:
        return FLOAT, f"fp32 is built: no form of int8 is within the budget ({ANYWAY})"
    best = min(forms, key=lambda name: medians[name])
    gain = medians[FLOAT] / medians[best]
    if gain < MIN_GAIN:
        return FLOAT, f"fp32 is built: {best} int8 is {gain:.2f} times as fast, {MIN_GAIN:g} needed ({ANYWAY})"
    return best, f"{best} int8 is built: {gain:.2f} times as fast as fp32, the fastest form within the budget"


def _time_in_turns(runners: Mapping[str, Runner], feeds: Feeds) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each form: one call of each a round, after a call that is not counted."""
    for runner in runners.values():
        runner.run(feeds)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    started = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - started > TIMING_SECONDS:
            break
        for name, runner in runners.items():
            seconds[name].append(time_call(functools.partial(runner.run, feeds)))
    return {name: np.array(calls) for name, calls in seconds.items()}


def median(calls: np.ndarray) -> float:
    return float(np.median(calls))


def _runner(graph: Graph, path: Path) -> Runner:
    """A session with the options that the artifact will record."""
    save_graph(graph, path)
    described = {kind: [spec.to_json() for spec in getattr(graph, kind)] for kind in ("inputs", "outputs")}
    return onnxruntime.open_file(path, described)
