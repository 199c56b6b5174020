"""Tables of what was built, measured and found, for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quant.calibration import METHODS
from ..verification import FAILED
from .document import directory_bytes
from .layout import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..artifact import Artifact
    from ..bench import BenchResult, Ratio
    from ..fusions import Change
    from ..quant.calibration import Ranges
    from ..serve import BucketPlan, ServingPlan
    from ..targets import Work
    from ..verification import Metric, Verdict
    from ..verification.diagnose import Bisection, Drift


def artifacts_table(found: Iterable[Artifact]) -> Table:
    """One row an artifact: what it is, how large, how many kernels, how close to its source."""
    from ..artifact import read_report

    columns = ("artifact", "target", "precision", "size", "kernels", "fp32 islands", "cosine (min)", "rel. error", "verified")
    rows = Table(*columns, wrap=("verified",))
    for each in found:
        report = read_report(each.path / "report.json")
        verdict = report["verification"]
        engine = each.manifest["engine"]
        kernels = str(engine["kernels"]["count"]) if "kernels" in engine else "-"
        target = ":".join(filter(None, (each.target, ",".join(each.manifest["target"]["sms"]))))
        size = f"{directory_bytes(each.path) / 2**20:.0f} MiB"
        islands = str(len(each.manifest["precision"]["islands"]))
        rows.add(each.path.name, target, each.precision, size, kernels, islands, *_closeness(verdict))
    return rows


def _closeness(verdict: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """(cosine, relative error, what was verified) of a verdict as JSON."""
    if verdict is None:
        return "-", "-", "no (--no-verify)"
    outputs = (verdict["engine"] or verdict["graph"])["outputs"].values()
    cosine = min(float(o["cosine_min"]) for o in outputs)
    relative = max(float(o["relative"]) for o in outputs)
    how = "engine" if verdict["engine_executed"] else "graph (engine NOT RUN)"
    return f"{cosine:.7f}", f"{relative:.1e}", how if verdict["verdict"] == "passed" else f"FAILED ({how})"


def fusions_table(change: Change) -> Table:
    """Matches kept and candidates not fused, by rule, and the largest error a proof found."""
    rows = Table("rule", "fused", "candidates not fused", "largest error in a proof")
    counts = change.counts()
    refused = [r.rule for r in change.refusals]
    for rule in sorted({*counts, *refused}):
        errors = [a.error for a in change.applied if a.rule == rule and a.error is not None]
        worst = f"{max(errors):.1e}" if errors else "not proven"
        rows.add(rule, str(counts.get(rule, 0)), str(refused.count(rule)), worst if rule in counts else "-")
    return rows


def verdicts_table(verdicts: Iterable[Verdict]) -> Table:
    """One row an output of each artifact."""
    columns = ("artifact", "output", "max abs", "rel. error", "cosine (min)", "SQNR dB", "decisions kept", "verdict")
    rows = Table(*columns, wrap=("decisions kept",))
    for verdict in verdicts:
        decided = "; ".join(f"{d.name} {d.agreed}/{d.total}" for d in verdict.result.decisions) or verdict.result.note
        for out in verdict.result.outputs:
            said = verdict.verdict if verdict.passed else verdict.verdict.upper()
            closeness = (f"{out.max_abs:.2e}", f"{out.relative:.2e}", f"{out.cosine_min:.7f}", f"{out.sqnr_db:.1f}")
            cells = ("integers", f"{out.changed} changed", "-", "-") if out.integer else closeness
            rows.add(Path(verdict.path).name, out.name, *cells, decided, said)
    return rows


def metrics_table(verdicts: Iterable[Verdict]) -> Table | None:
    """One row a metric of each artifact, with the interval of its drop; None where nothing decides."""
    columns = ("artifact", "metric", "of source", "of artifact", "drop", "95 % interval", "rows", "method", "verdict")
    rows = Table(*columns, wrap=("method",))
    for verdict in verdicts:
        for at, each in enumerate(verdict.result.metrics):
            said = _against_budget(verdict, at, each)
            numbers = [_number(value) for value in (each.source, each.artifact, each.drop)]
            interval = "-" if each.low is None else f"{_number(each.low)} to {_number(each.high)}"
            rows.add(Path(verdict.path).name, each.name, *numbers, interval, str(each.rows), each.method, said)
    return rows if rows.rows else None


def curve_table(int8: Mapping[str, Any]) -> Table:
    """One row a point that the search for int8 measured, all on the same rows: what the metric lost with how much of the GEMMs in
    int8. The interval is that of the metric beside it."""
    metric = int8["metric"] + (f" on {int8['curve_rows']} rows" if int8.get("curve_rows") else "")
    rows = Table("int8, % of GEMM FLOPs", metric, "95 % interval", "drop", "layers left in float", "outcome")
    for at, point in enumerate(int8["curve"]):
        interval = "-" if point["low"] is None else f"{point['low']:.5f} to {point['high']:.5f}"
        drop = "-" if point["drop"] is None else f"{point['drop']:.5f}"
        said = "" if at != int8["chosen"] else ("built" if point["share"] and int8["share"] else "not within the limit")
        cells = (f"{point['value']:.5f}", interval, drop, str(len(point["kept_in_fp"])), said)
        rows.add(f"{100 * point['share']:.1f}", *cells)
    return rows


def _against_budget(verdict: Verdict, at: int, measure: Metric) -> str:
    """What the budget makes of a metric: the first one where there are labels, else each."""
    budget, decisions = verdict.budget, not verdict.result.labelled
    limits = [budget.max_drop] if at == 0 or decisions else []
    limits += [1 - budget.agreement] if decisions and budget.agreement is not None else []
    judging = [limit for limit in limits if limit is not None]
    if judging:
        return f"{measure.verdict(min(judging))} (at most {min(judging):g})"
    if decisions and budget.alarm is not None:
        return f"{'ALARM' if measure.verdict(budget.alarm) == FAILED else 'ok'} (alarm limit {budget.alarm:g})"
    return "not judged"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


MOST = 3  # outlier channels, guilty nodes: the JSON has all


def calibration_table(found: Ranges) -> Table:
    """One row a tensor, in the order of the file."""
    columns = ("tensor", "operator", "module", "status", "min", "max", *METHODS, "outlier channels")
    rows = Table(*columns, wrap=("outlier channels",), drop=("module", "outlier channels", "operator", "status"))
    for name, each in found.tensors.items():
        numbers = [f"{value:.4g}" if each.values else "-" for value in (each.low, each.high)]
        by_method = each.ranges(found.settings.percentile)
        numbers += [f"{by_method[method]:.4g}" if by_method else "-" for method in METHODS]
        place = each.place
        rows.add(name, place.op, place.module, each.status, *numbers, _outliers(each.outliers(found.settings.outlier)))
    return rows


def _outliers(found: Mapping[int, float]) -> str:
    worst = sorted(found, key=lambda channel: -found[channel])[:MOST]
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(f"{channel} ({found[channel]:.0f}x)" for channel in worst) + more


def drift_table(found: Drift) -> Table:
    """One row a layer boundary: the drift there, its growth since the one before."""
    columns = ("module", "operator", "line", "drift", "growth", "max abs", "cosine (min)", "not finite")
    rows = Table(*columns, drop=("line", "max abs", "growth", "operator"))
    for layer in found.layers:
        line = next(iter(layer.origin.places), "").rpartition("/")[2]
        numbers = (
            f"{layer.relative:.2e}",
            f"{layer.growth:.2f}" if layer.growth == layer.growth else "-",
            f"{layer.max_abs:.2e}",
        )
        rows.add(layer.module, layer.op, line, *numbers, f"{layer.cosine_min:.7f}", str(layer.nonfinite or "-"))
    return rows


def bisection_table(found: Bisection) -> Table:
    """One row a node, `MOST` at most."""
    rows = Table("node", "operator", "module", "line", "largest", "type's largest")
    for node in found.nodes[:MOST]:
        lines = ", ".join(place.rpartition("/")[2] for place in node.origin.places[:3]) or "-"
        limit = "-" if node.limit is None else f"{node.limit:g}"
        largest = f"{node.largest:.6g}" + (" OVERFLOWS" if node.overflows else "")
        rows.add(node.node, node.op, str(node.origin.module) or "-", lines, largest, limit)
    if len(found.nodes) > MOST:
        rows.add(f"and {len(found.nodes) - MOST} more (--json)", *[""] * 5)
    return rows


def timings_table(result: BenchResult) -> Table:
    """A row for each contender at each shape."""
    columns = ("shape", "contender", "p50 ms", "p90 ms", "p99 ms", "IQR ms", "samples/s", "tokens/s", "time / artifact's (95 %)")
    rows = Table(*columns, drop=("IQR ms", "p99 ms", "tokens/s", "p90 ms"))
    ratios = {(r.shape, r.contender): r for r in result.ratios}
    for timing in result.timings:
        facts = timing.to_json()
        times = [_number(facts[key]) for key in ("p50_ms", "p90_ms", "p99_ms", "iqr_ms")]
        rates = ["-" if facts[key] is None else f"{facts[key]:,.0f}" for key in ("samples_per_s", "tokens_per_s")]
        found = ratios.get((str(timing.shape), timing.contender))
        rows.add(str(timing.shape), timing.contender, *times, *rates, _ratio(found))
    for each in result.ratios:
        if each.shape == "traffic":
            rows.add("traffic", each.contender, *["-"] * 6, _ratio(each))
    return rows


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return "-"
    return f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"


def work_table(work: Work) -> Table:
    """A row a layer, and their sum."""
    rows = Table("layer", "kernels", "GFLOP", "MiB moved", "FLOP per byte")
    for layer in (*work.layers, work.total()):
        moved = "-" if layer.moved is None else f"{layer.moved / 2**20:.2f}"
        intensity = f"{layer.flops / layer.moved:.0f}" if layer.moved else "-"
        rows.add(layer.name, str(layer.kernels), f"{layer.flops / 1e9:.3f}", moved, intensity)
    return rows


def buckets_table(found: BucketPlan, chosen: int) -> Table:
    """Tokens wasted by number of buckets."""
    rows = Table("buckets", "tokens computed", "wasted", "wasted %", "one more saves", "bounds", wrap=("bounds",))
    for at, choice in enumerate(found.choices):
        saving = found.saving(at)
        wasted = choice.computed - found.tokens
        said = "-" if saving is None else f"{saving:.1%}"
        mark = f"{at + 1} <" if at == chosen else f"{at + 1}"
        bounds = " ".join(map(str, choice.bounds))
        rows.add(mark, f"{choice.computed:,}", f"{wasted:,}", f"{found.waste(choice):.1%}", said, bounds)
    return rows


def serving_table(plan: ServingPlan) -> Table:
    """A row a policy: at the wanted rate its latencies, padding and load, and the highest rate that it serves in the limit."""
    rows = Table("policy", "p50 ms", "p90 ms", "p99 ms", "padding", "load", f"most/s in {plan.p99 * 1e3:g} ms")
    for each in plan.tried:
        run = next(run for rate, run in each.runs if rate == plan.rate)
        times = [f"{run.percentile(share) * 1e3:.1f}" if len(run.latency) else "-" for share in (50, 90, 99)]
        rows.add(each.name, *times, f"{run.waste:.0%}", f"{run.utilisation:.0%}", f"{each.capacity:.0f}")
    return rows
