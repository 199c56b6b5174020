"""Coverage: what is fused, by model, exporter and fuser

Models of small random size (biases and norms random too; `minilm-real` has real weights), each exported by `torch.onnx.export`
with dynamic shapes: by the default exporter (dynamo) and by the older one (TorchScript), with sdpa and eager attention, at the
default opset 20, and at 17. Each file is then given to `bertc fuse`, to `onnxruntime.transformers.optimizer.optimize_model` (with
the fitting model_type, heads and width) and to `onnxscript.rewriter.ort_fusions.optimize_for_ort`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bertc.core.machine import versions
from bertc.fusions import families

from . import counting, exporting, golden, zoo
from .tools import table

HERE = Path(__file__).parent
JOBS = int(os.environ.get("COVERAGE_JOBS", max(1, (os.cpu_count() or 1) // 2)))  # models at a time
CLOSE = 1e-5  # relative, fp32: what is further away computes something else
WRONG = 1e-3  # an export this far from PyTorch is another model
UNCOUNTED = "not counted"
LOOKED_FOR = ("attention:", "sdpa:", "mask:")  # near-misses of these rules explain a layer without attention


def run() -> str:
    """Export, count, write goldens and the full table, and return the summary."""
    exporting.ensure(list(zoo.ROWS), JOBS)
    counting.ensure(list(zoo.ROWS), JOBS)
    write_goldens()
    return report()


def report() -> str:
    """The summary, and the full table beside it, of what was counted."""
    found = {(n, e): answers(n, e) for n in zoo.ROWS for e in exporting.EXPORTERS if exporting.runs(n, e)}
    full = HERE / "results" / "coverage.md"
    full.write_text(details(found), encoding="utf-8")
    parts = [
        str(__doc__).partition("\n\n")[2].strip(),
        f"{summary(found)}\n\nonnxscript's MultiHeadAttention, which leaves the projections apart, counts as attention here.",
        "Attention found, of as many as there are: **bertc** / onnxruntime / onnxscript. `-`: not exported (reasons below); "
        "`x`: the fuser refused or crashed; `?`: not counted yet; `!`: its file does not run or computes something else. "
        f"Every rule, distance and refusal: [results/coverage.md](results/coverage.md).\n\n{attention(found)}",
        "Families with a fusion contract (`compiler/fusions/families.py`), found of expected by the default exporter.\n\n"
        f"{promises(found)}",
        f"Distance of the fused file from the exported one, max|a-b|/max|b| of the worst model, where one is over {CLOSE:g}.\n\n"
        + wrong(found),
        f"What could not be exported, or not rightly.\n\n{refused()}",
    ]
    return "\n\n".join(parts)


def write_goldens() -> None:
    """Goldens and their counts again. RuntimeError where a golden fuses otherwise than the file it was made of."""
    for path in golden.FOLDER.glob("*.onnxtxt*"):
        path.unlink()
    for name in zoo.ROWS:
        for exporter in golden.kept(name, [e for e in exporting.EXPORTERS if exporting.runs(name, e)]):
            known = exporting.known(name, exporter)
            assert known is not None
            source, path = exporting.paths(name, exporter)[0], golden.path_of(name, exporter)
            golden.write(source, path, known["versions"], known["padding"])
    for key, counts in golden.write_counts().items():
        answer = answers(*key.split(".", 1))["bertc"]
        if isinstance(counts, dict) and counts != answer.get("counts"):
            raise RuntimeError(f"the golden of {key} fuses to {counts}, the export itself to {answer}")


def answers(name: str, exporter: str) -> dict[str, dict[str, Any]]:
    """What each fuser answered for one export."""
    return {f: counting.known(name, exporter, f) or {"reason": UNCOUNTED} for f in counting.FUSERS}


Found = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]


def summary(found: Found) -> str:
    """Totals by fuser and exporter."""
    rows = []
    for exporter in exporting.EXPORTERS:
        files = {n: a for (n, e), a in found.items() if e == exporter}
        for fuser in counting.FUSERS:
            each = {n: a[fuser] for n, a in files.items() if a[fuser].get("reason") != UNCOUNTED}
            layers = sum(zoo.ROWS[n].attentions for n in each)
            attention = sum(min(attentions(a.get("counts", {})), zoo.ROWS[n].attentions) for n, a in each.items())
            failed = sum("reason" in a for a in each.values())
            broken = sum(any(isinstance(d, str) for d in a.get("distance", {}).values()) for a in each.values())
            off = sum(worst(a) > CLOSE for a in each.values())
            rows.append([exporter, fuser, str(len(each)), f"{attention} of {layers}", str(failed), str(broken), str(off)])
    head = [
        "exporter",
        "fuser",
        "files",
        "attentions fused",
        "refused or crashed",
        "does not run",
        f"off by over {CLOSE:g}",
    ]
    return table(head, rows)


def worst(answer: Mapping[str, Any]) -> float:
    """The largest distance under any mask; 0 where the file was not made or does not run."""
    return max((d for d in answer.get("distance", {}).values() if not isinstance(d, str)), default=0.0)


def attention(found: Found) -> str:
    rows = []
    for name, row in zoo.ROWS.items():
        cells = [_attention(found.get((name, e)), row.attentions) for e in exporting.EXPORTERS]
        rows.append([name, row.model, *cells])
    return table(["model", "class", *exporting.EXPORTERS], rows)


def _attention(answer: Mapping[str, Mapping[str, Any]] | None, layers: int) -> str:
    if answer is None:
        return "-"
    cells = [_found(answer[fuser]) for fuser in counting.FUSERS]
    return f"**{cells[0]}** / {cells[1]} / {cells[2]} of {layers}"


def _found(answer: Mapping[str, Any]) -> str:
    """A count of attentions; `x` for no file, `!` behind the count of one that does not run or computes something else."""
    if "reason" in answer:
        return "?" if answer["reason"] == UNCOUNTED else "x"
    bad = worst(answer) > CLOSE or any(isinstance(d, str) for d in answer["distance"].values())
    return f"{attentions(answer['counts'])}{'!' if bad else ''}"


def attentions(counts: Mapping[str, int]) -> int:
    """Layers whose attention, projections and all, became one operator: rules of its variants are named `..._attention`."""
    return sum(count for rule, count in counts.items() if rule.endswith("attention"))


def promises(found: Found) -> str:
    rows = []
    for (name, exporter), answer in found.items():
        family = zoo.family(name)
        if family not in families.FAMILIES or not exporter.startswith("dynamo"):
            continue
        promised = families.expected_counts(family, zoo.ROWS[name].layers)
        counts = answer["bertc"].get("counts", {})
        cells = ", ".join(f"{rule} {counts.get(rule, 0)} of {n}" for rule, n in promised.items())
        kept = all(counts.get(rule, 0) >= n for rule, n in promised.items())
        rows.append([name, exporter, cells, "yes" if kept else "**no**", f"{worst(answer['bertc']):.0e}"])
    return table(["model", "exporter", "found of expected", "contract kept", "distance"], rows)


def wrong(found: Found) -> str:
    """Where a fused file computes something else, by mask."""
    rows = []
    for (name, exporter), answer in found.items():
        for fuser in counting.FUSERS:
            if worst(answer[fuser]) > CLOSE:
                cells = [_distance(answer[fuser]["distance"].get(mask)) for mask in zoo.MASKS]
                rows.append([name, exporter, fuser, *cells])
    head = ["model", "exporter", "fuser", *("all attended to" if m == "none" else m for m in zoo.MASKS)]
    return table(head, rows) if rows else "None."


def _distance(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.1e}"


def refused() -> str:
    """Exports that failed, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for name in zoo.ROWS:
        for exporter in exporting.EXPORTERS:
            reason = _why_not(exporting.known(name, exporter) or {"reason": "not tried"})
            if reason:
                reasons.setdefault(_general(reason, zoo.ROWS[name].model), []).append(f"{name} ({exporter})")
    return table(["reason", "models"], [[_cell(reason), ", ".join(names)] for reason, names in reasons.items()])


def _why_not(known: Mapping[str, Any]) -> str:
    """Why an export is no use: refused, not running at another size, or another model than PyTorch's."""
    if "reason" in known:
        return str(known["reason"])
    broken = [each for each in known["torch"].values() if isinstance(each, str)]
    if broken:
        return f"runs at the size of the example alone: {broken[0]}"
    far = max(known["torch"].values())
    return f"exported, but {far:.0e} off PyTorch at other sizes (fused as it is)" if far > WRONG else ""


def _general(reason: str, model: str) -> str:
    """The reason without the model's name in it, up to the pointer to an issue tracker."""
    return reason.replace(model, "the model").split(" Please request")[0]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:240]


def details(found: Found) -> str:
    """Every model, exporter and rule, with bertc's near-misses where a layer has no fused attention."""
    tools = ", ".join(f"{k} {v}" for k, v in versions().items())
    rows = [row for (name, exporter), answer in found.items() for row in _rows(name, exporter, answer)]
    rules = sorted({r for a in found.values() for f in counting.FUSERS for r in a[f].get("counts", {})})
    columns = ["model", "exporter", "fuser", *rules, "nodes left", *zoo.MASKS, "reason"]
    lines = [[*r[:3], *(str(r[3].get(rule, "")) for rule in rules), *r[4:]] for r in rows]
    head = f"# Coverage in full\n\n`python -m benchmarks coverage`. {tools}.\n\n"
    return f"{head}{table(columns, lines)}\n\n## Near-misses of bertc\n\n{misses(found)}\n"


def _rows(name: str, exporter: str, answer: Mapping[str, Mapping[str, Any]]) -> Iterable[list[Any]]:
    for fuser in counting.FUSERS:
        each = answer[fuser]
        distances = [_cell(_distance(each.get("distance", {}).get(mask))) for mask in zoo.MASKS]
        yield [
            name,
            exporter,
            fuser,
            each.get("counts", {}),
            str(each.get("nodes", "")),
            *distances,
            _cell(each.get("reason", "")),
        ]


def misses(found: Found) -> str:
    """Where attention was found in fewer layers than there are: the reasons, by model and exporter."""
    parts = []
    for (name, exporter), answer in found.items():
        each = answer["bertc"]
        counts = each.get("counts", {})
        if attentions(counts) >= zoo.ROWS[name].attentions:
            continue
        reasons = [r for r in each.get("refusals", ()) if r.startswith(LOOKED_FOR)] or [each.get("reason", "")]
        lines = "".join(f"  - {_cell(reason)}\n" for reason in reasons[:6])
        parts.append(f"- {name}, {exporter}: {json.dumps(counts)}\n{lines}")
    return "".join(parts) or "None."
