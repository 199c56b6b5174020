"""Plots of drift, timings and buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plots import Plot, Series

if TYPE_CHECKING:
    from ..bench import BenchResult
    from ..serve import BucketPlan, ServingPlan
    from ..verification.diagnose import Drift


def drift_plot(found: Drift) -> Plot:
    """Drift over the module boundaries in order; values that are not finite are left out."""
    points = [(at, layer.relative) for at, layer in enumerate(found.layers) if 0 < layer.relative < float("inf")]
    series = Series("drift", [at for at, _ in points], [drift for _, drift in points])
    return Plot("Drift after every module", "module, in the order of the graph", "rms error / rms", [series], log=True)


def timings_plot(result: BenchResult) -> Plot:
    """Median time of each contender by shape."""
    names = list(dict.fromkeys(t.contender for t in result.timings))
    by_name = {name: [t for t in result.timings if t.contender == name] for name in names}
    series = [Series(name, [str(t.shape) for t in own], [t.median * 1e3 for t in own]) for name, own in by_name.items()]
    dims = "x".join(name for name, _ in result.timings[0].shape.sizes)
    return Plot(f"median latency: {result.artifact}", dims, "ms", series, "bar", log=True)


def buckets_plot(found: BucketPlan, name: str) -> Plot:
    """Tokens wasted by number of buckets, and the part of it that no bucket saves."""
    numbers = range(1, len(found.choices) + 1)
    wasted = [100 * found.waste(choice) for choice in found.choices]
    floor = [100 * found.in_batches / choice.computed for choice in found.choices]
    series = [Series("wasted", numbers, wasted)]
    if found.in_batches:
        series.append(Series("padding inside batches", numbers, floor))
    return Plot(f"tokens wasted: {name}", "buckets", "% of the tokens computed", series)


def serving_plot(plan: ServingPlan, name: str) -> Plot:
    """p99 by rate of each policy; rates at which nothing is answered in time are left out."""
    series = []
    for each in plan.tried:
        points = [(rate, run.percentile(99) * 1e3) for rate, run in each.runs if len(run.latency)]
        series.append(Series(each.name, [rate for rate, _ in points], [p99 for _, p99 in points]))
    return Plot(f"p99 by rate: {name}", "requests a second", "ms", series, log=True)
