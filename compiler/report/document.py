"""What was done and measured: report.json for machines, tables for people."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import machine as packages
from ..verify.intervals import FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from ..artifact.manifest import Artifact
    from ..core.progress import Progress
    from ..fusions.rewrite import Change
    from ..graph.model import Graph
    from ..verify.export import Proof
    from ..verify.intervals import Measure
    from ..verify.verdict import Verdict

TOOLS = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "tensorrt_rtx",
    "tensorrt",
    "polygraphy",
    "numpy",
)
BUILDER_ALONE = ", builder alone"


def versions() -> dict[str, str]:
    """Versions of Python and of the tools that can change a result; those that are not installed are left out."""
    found = {name: packages.version(name) for name in TOOLS}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v}


def document(
    facts: Mapping[str, Any], graphs: Mapping[str, Graph | None], proof: Proof, verdict: Verdict | None, log: Progress, size: Size
) -> dict[str, Any]:
    """The content of report.json, from which report.html is made: the facts of the manifest, and what was measured.

    `graphs` are those before the target's own ("source", "fused"). Times in seconds, sizes in bytes; a file of two names counts
    once in the total, and neither counts report.json, report.html and manifest.json.
    """
    before = {name: _counted(graph) for name, graph in graphs.items() if graph is not None}
    made = {
        **facts,
        "graphs": before | {"artifact": {"nodes": sum(facts["graph"]["ops"].values()), **facts["graph"]}},
        "export_check": proof.to_json(),
        "verification": verdict.to_json() if verdict else None,
        "stages": {name: round(seconds, 3) for name, seconds in log.stages.items()},
        "notes": list(log.notes),
        "size": dataclasses.asdict(size),
        "environment": environment(),
    }
    return made | {"summary": summary(made)}


def _counted(graph: Graph) -> dict[str, Any]:
    ops = graph.op_counts()
    return {"nodes": sum(ops.values()), "opset": graph.opset, "ops": ops, "initializer_bytes": graph.initializer_bytes}


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """Sums and counts of what a report lists, so that whoever shows one has them from here and not from its own arithmetic."""
    stages, kernels = document["stages"], document["engine"].get("kernels", {})
    passes = document.get("passes") or {"refusals": ()}
    # The builder's own time is part of its stage.
    whole = [seconds for name, seconds in stages.items() if not name.endswith(BUILDER_ALONE)]
    return {
        "seconds": round(sum(whole), 3),
        "near_misses": dict(Counter(r["rule"] for r in passes["refusals"])),
        "islands": dict(Counter(i["reason"] for i in document["precision"].get("islands", ()))),
        "kernels": dict(Counter(row["layer"] or "outside the layers" for row in kernels.get("rows", ()) if not row["profile"])),
    }


def why_precision(document: Mapping[str, Any]) -> str | None:
    """Why a low-bit build has the precision that it has, by the last measurement that had a say; None for any other build."""
    int8 = document.get("int8") or {}
    deciding = int8.get("worth") or int8.get("candidates") or int8
    return deciding.get("why")


def environment() -> dict[str, Any]:
    """The machine: operating system, processor, cores, memory in GiB, NVIDIA GPUs."""
    gpus = [f"{name} ({sm})" for name, sm in packages.gpus()]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "gpus": gpus,
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text("utf-8", "replace").splitlines() if told.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory in GiB, None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


@dataclasses.dataclass(frozen=True)
class Size:
    """Bytes of each file, by its name, and of all together on the disk."""

    files: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, directory: Path) -> Size:
        found = sorted(p for p in directory.rglob("*") if p.is_file())
        return cls({p.relative_to(directory).as_posix(): p.stat().st_size for p in found}, size_of(directory))


def size_of(path: Path) -> int:
    """Bytes of a directory; a file under two names (hard link) counts once."""
    stats = {s.st_ino: s.st_size for s in (p.stat() for p in path.rglob("*") if p.is_file())}
    return sum(stats.values())


def artifacts_table(found: Iterable[Artifact]) -> Table:
    """One row an artifact: what it is, how large, how many kernels, how close to its source."""
    import json

    rows = table("artifact", "target", "precision", "size", "kernels", "fp32 islands", "cosine (min)", "rel. error", "verified")
    for each in found:
        report = json.loads((each.path / "report.json").read_text("utf-8"))
        verdict = report["verification"]
        engine = each.manifest["engine"]
        kernels = str(engine["kernels"]["count"]) if "kernels" in engine else "-"
        target = ":".join(filter(None, (each.target, ",".join(each.manifest["target"]["sms"]))))
        size = f"{size_of(each.path) / 2**20:.0f} MiB"
        islands = str(len(each.manifest["precision"]["islands"]))
        add(rows, each.path.name, target, each.precision, size, kernels, islands, *_closeness(verdict))
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
    """Matches kept and near-misses, by rule, and the largest error a proof found."""
    rows = table("rule", "found", "near-misses", "largest error in a proof")
    counts = change.counts()
    refused = [r.rule for r in change.refusals]
    for rule in sorted({*counts, *refused}):
        errors = [a.error for a in change.applied if a.rule == rule and a.error is not None]
        worst = f"{max(errors):.1e}" if errors else "not proven"
        add(rows, rule, str(counts.get(rule, 0)), str(refused.count(rule)), worst if rule in counts else "-")
    return rows


def verdicts_table(verdicts: Iterable[Verdict]) -> Table:
    """One row an output of each artifact."""
    rows = table("artifact", "output", "max abs", "rel. error", "cosine (min)", "SQNR dB", "decisions kept", "verdict")
    for verdict in verdicts:
        decided = "; ".join(f"{d.name} {d.agreed}/{d.total}" for d in verdict.result.decisions) or verdict.result.note
        for out in verdict.result.outputs:
            said = verdict.verdict if verdict.passed else verdict.verdict.upper()
            row = (f"{out.max_abs:.2e}", f"{out.relative:.2e}", f"{out.cosine_min:.7f}", f"{out.sqnr_db:.1f}")
            add(rows, Path(verdict.path).name, out.name, *row, decided, said)
    return rows


def metrics_table(verdicts: Iterable[Verdict]) -> Table | None:
    """One row a metric of each artifact, with the interval of its drop; None where nothing decides."""
    rows = table("artifact", "metric", "source", "artifact", "drop", "95 % interval", "rows", "method", "verdict")
    for verdict in verdicts:
        for at, each in enumerate(verdict.result.measures):
            said = _judged(verdict, at, each)
            numbers = [_number(value) for value in (each.source, each.artifact, each.drop)]
            interval = "-" if each.low is None else f"{_number(each.low)} to {_number(each.high)}"
            add(rows, Path(verdict.path).name, each.name, *numbers, interval, str(each.rows), each.method, said)
    return rows if rows.row_count else None


def curve_table(int8: Mapping[str, Any]) -> Table:
    """One row a point that the search for int8 measured: what the metric lost with how much of the GEMMs in int8."""
    rows = table("int8, % of GEMM FLOPs", int8["metric"], "95 % interval", "drop", "given back", "")
    for at, point in enumerate(int8["curve"]):
        interval = "-" if point["low"] is None else f"{point['low']:.5f} to {point['high']:.5f}"
        drop = "-" if point["drop"] is None else f"{point['drop']:.5f}"
        said = "" if at != int8["chosen"] else ("built" if point["share"] and int8["share"] else "not within the limit")
        cells = (f"{point['value']:.5f}", interval, drop, str(len(point["kept_in_fp"])), said)
        add(rows, f"{100 * point['share']:.1f}", *cells)
    return rows


def _judged(verdict: Verdict, at: int, measure: Measure) -> str:
    """What the budget makes of a metric: the first one where there are labels, else each."""
    budget, decisions = verdict.budget, not verdict.result.labelled
    limits = [budget.max_drop] if at == 0 or decisions else []
    limits += [1 - budget.agreement] if decisions and budget.agreement is not None else []
    wanted = [limit for limit in limits if limit is not None]
    if wanted:
        return f"{measure.verdict(min(wanted))} (at most {min(wanted):g})"
    if decisions and budget.alarm is not None:
        return f"{'ALARM' if measure.verdict(budget.alarm) == FAILED else 'no alarm'} (above {budget.alarm:g})"
    return "not judged"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def add(rows: Table, *cells: str) -> None:
    """A row whose cells are shown as they are: `bertc[rtx]` is no markup."""
    from rich.text import Text

    rows.add_row(*(Text(cell) for cell in cells))


def table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if index == 0 else "default")
    return table
