"""What was done and measured: report.json for machines, tables for people."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import environment

if TYPE_CHECKING:
    from ..core import Progress
    from ..graph import Graph
    from ..verification import ExportCheck, InputsCheck, Verdict

BUILDER_ALONE = ", builder alone"


def build_report(
    facts: Mapping[str, Any],
    graphs: Mapping[str, Graph | None],
    proof: ExportCheck,
    verdict: Verdict | None,
    log: Progress,
    size: ArtifactSize,
    inputs: InputsCheck | None = None,
) -> dict[str, Any]:
    """The content of report.json, from which report.html is made: the facts of the manifest, and what was measured.

    `graphs` are those before the target's own ("source", "fused"). Times in seconds, sizes in bytes; a hard-linked file counts
    once in the total, and neither counts report.json, report.html and manifest.json.
    """
    before = {name: _counted(graph) for name, graph in graphs.items() if graph is not None}
    made = {
        **facts,
        "graphs": before | {"artifact": {"nodes": sum(facts["graph"]["ops"].values()), **facts["graph"]}},
        "export_check": proof.to_json(),
        "inputs_check": inputs.to_json() if inputs else None,
        "verification": verdict.to_json() if verdict else None,
        "stages": {name: round(seconds, 3) for name, seconds in log.stages.items()},
        "notes": list(log.notes),
        "size": dataclasses.asdict(size),
        "environment": environment(),
        "command": command_line(facts["recipe"]),
    }
    return made | {"summary": summary_counts(made)}


def command_line(recipe: Mapping[str, Any]) -> str:
    """The `bertc build` command of a recipe as its to_json() gives it; its precision stands with each target (NAME=PRECISION)."""
    words = ["bertc", "build", recipe["source"], "-o", "OUT"]
    precision = recipe.get("precision")
    for target in recipe.get("targets", ()):
        words += ["--target", target if "=" in target or not precision else f"{target}={precision}"]
    for name, value in recipe.items():
        flag = "--" + name.replace("_", "-")
        if name in ("source", "targets", "precision"):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [word for key, each in value.items() for word in (flag, f"{key}={each}")]
        elif isinstance(value, list | tuple):
            words += [word for each in value for word in (flag.removesuffix("s"), each)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _counted(graph: Graph) -> dict[str, Any]:
    ops = graph.op_counts()
    return {"nodes": sum(ops.values()), "opset": graph.opset, "ops": ops, "initializer_bytes": graph.initializer_bytes}


def summary_counts(document: Mapping[str, Any]) -> dict[str, Any]:
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


def precision_reason(document: Mapping[str, Any]) -> str | None:
    """Why a low-bit build has the precision that it has, by the last measurement that had a say; None for any other build."""
    int8 = document.get("int8") or {}
    deciding = int8.get("worth") or int8.get("candidates") or int8
    return deciding.get("why")


@dataclasses.dataclass(frozen=True)
class ArtifactSize:
    """Bytes of each file, by its name, and of all together on the disk."""

    files: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, directory: Path) -> ArtifactSize:
        found = sorted(p for p in directory.rglob("*") if p.is_file())
        return cls({p.relative_to(directory).as_posix(): p.stat().st_size for p in found}, directory_bytes(directory))


def directory_bytes(path: Path) -> int:
    """Bytes of a directory; a file under two names (hard link) counts once."""
    stats = {s.st_ino: s.st_size for s in (p.stat() for p in path.rglob("*") if p.is_file())}
    return sum(stats.values())
