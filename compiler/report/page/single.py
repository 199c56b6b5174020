"""The page of one artifact: what of report.json stands where. The words and the order are in artifact.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..plots import Plot
from . import page_plots as drawn
from .marks import Path, ReportView, json_leaves, json_pointer
from .templates import breakable, environment

# Numbers of report.json that are not on the page, and why. `*` stands for one name or number.
LEFT_OUT = {
    "/graph": "the same as /graphs/artifact",
    "/engine/kernels/layers": "shown by the layers' names, from /summary/kernels",
    "/engine/kernels/rest": "shown by the layers' names, from /summary/kernels",
    "/engine/kernels/rows/*/profile": "the first profile's kernels are listed; a profile more repeats them",
    "/int8/chosen": "shown as a mark on the chosen row",
    "/export_check/outputs/*/peak": "the scale of its relative error",
    "/verification/graph/outputs/*/peak": "the scale of its relative error",
    "/verification/engine/outputs/*/peak": "the scale of its relative error",
}
# What has a section; anything else that a report holds is shown at the end as it is.
SECTIONS = frozenset(
    "bertc source recipe target precision passes graph graphs engine inputs outputs dims profiles seed budget tools export_check "
    "inputs_check index_bounds verification stages notes size environment summary int8 format files command".split()
)
VERIFIED = frozenset(
    "artifact target precision data verdict engine_executed engine_reason budget graph engine violations notes drift".split()
)
RESULT = frozenset("task samples rows outputs decisions metrics note".split())
DRIFT, LAYER = (
    frozenset({"compared", "against", "layers"}),
    frozenset("module node rel relative max_abs cosine cosine_min".split()),
)
INT8, POINT = frozenset("metric budget curve chosen why".split()), frozenset("share value low high kept_in_fp".split())
PLAN = frozenset("mode typed_nodes islands clamps casts".split())


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML text; a pure function of the report."""
    doc = ReportView(data)
    page = environment().get_template("artifact.html")
    html = page.render(
        doc=doc,
        n=doc.mark,
        tree=doc.tree,
        verdict=verdict_words(data),
        ops=operators(doc),
        fusions=fusion_rows(doc),
        layers=kernels_by_layer(doc),
        results=[("verification", each) for each in ("engine", "graph") if doc.get("verification", each)],
        plots=drawn.inline(plots_of(doc)),
        width=lambda *path: _width(doc, path),
        extra=lambda known, *path: sorted(set(doc.get(*path) or ()) - known),
        SECTIONS=SECTIONS,
        VERIFIED=VERIFIED,
        RESULT=RESULT,
        PLAN=PLAN,
        DRIFT=DRIFT,
        LAYER=LAYER,
        INT8=INT8,
        POINT=POINT,
        NONE=frozenset(),
        key=first_key,
        encodes=any(name.startswith("tokenizer/") for name in doc.get("size", "files") or ()),
        origin=lambda part, name: limit_origin(doc, part, name),
        left_out={path: why for path, why in LEFT_OUT.items() if _has(data, path)},
    )
    return breakable(html)


def verdict_words(data: Mapping[str, Any]) -> tuple[str, str]:
    """(good, fair or bad; the verdict in words)."""
    found = data.get("verification")
    if not found:
        return "fair", "NOT VERIFIED: built with --no-verify."
    if found["verdict"] == "failed":
        return "bad", "FAILED: outside its budget."
    if found["verdict"] == "undecided":
        return "fair", "UNDECIDED: too few rows to show that a limit is kept."
    if found["engine_executed"]:
        return "good", "Verified: the engine is within its budget against the source."
    return "fair", f"Verified: the typed graph. Engine NOT RUN: {found['engine_reason']}."


def operators(doc: ReportView) -> list[str]:
    """All operators of the graphs, those of the source first, in their order."""
    graphs = doc.get("graphs") or {"artifact": doc.get("graph") or {"ops": {}}}
    return list(dict.fromkeys(name for graph in graphs.values() for name in graph["ops"]))


def fusion_rows(doc: ReportView) -> list[dict[str, Any]]:
    """A row a rule: positions of its matches ("kept") and of its candidates not fused ("refused") in the lists of the report, and
    of the match with the largest error of a proof ("worst")."""
    applied, refusals = doc.get("passes", "applied") or [], doc.get("passes", "refusals") or []
    rows = []
    for rule in dict.fromkeys(each["rule"] for each in [*applied, *refusals]):
        kept = [at for at, each in enumerate(applied) if each["rule"] == rule]
        proven = [at for at in kept if applied[at]["error"] is not None]
        refused = [at for at, each in enumerate(refusals) if each["rule"] == rule]
        worst = max(proven, key=lambda at: applied[at]["error"], default=None)
        rows.append({"rule": rule, "kept": kept, "refused": refused, "worst": worst})
    return rows


def kernels_by_layer(doc: ReportView) -> list[tuple[str, list[int]]]:
    """(layer, positions of its kernels in the list) for the first profile, in the order they run."""
    found: dict[str, list[int]] = {}
    for at, row in enumerate(doc.get("engine", "kernels", "rows") or ()):
        if not row["profile"]:
            found.setdefault(row["layer"] or "outside the layers", []).append(at)
    return list(found.items())


def plots_of(doc: ReportView) -> dict[str, Plot]:
    """The plots that the report has numbers for."""
    found = {}
    for _, each in (("verification", e) for e in ("engine", "graph")):
        measures = [m for m in doc.get("verification", each, "metrics") or () if m["low"] is not None]
        if measures:
            found[f"decisions-{each}"] = drawn.decisions_plot(measures, doc.get("verification", "budget") or {})
    drift = doc.get("verification", "drift", "layers") or ()
    errors = [layer.get(first_key(layer, "rel", "relative")) for layer in drift]
    if any(isinstance(error, int | float) for error in errors):
        found["drift"] = drawn.drift_plot(errors)
    if doc.get("int8", "curve"):
        found["int8"] = drawn.int8_plot(doc.get("int8"))
    return found


def first_key(layer: Mapping[str, Any], *names: str) -> str:
    """The first of the names that a layer has: a relative error is `rel` or `relative`."""
    return next((name for name in names if name in layer), names[0])


def limit_origin(doc: ReportView, budget: ReportView, name: str) -> str:
    """Where a limit comes from, as far as the report tells; the page adds the precision to "default of"."""
    if budget.get(name) != doc.get("budget", name):
        return "given to bertc verify"
    asked = doc.get("recipe", "budget", name) is not None
    return "from --budget or the recipe" if asked else "default of"


def _width(doc: ReportView, path: Path) -> float:
    """The length of a bar in per cent: the value at a path beside the largest of its list."""
    values = doc.get(*path[:-1])
    numbers = values.values() if isinstance(values, Mapping) else values
    return round(100 * (doc.get(*path) or 0) / (max(numbers, default=0) or 1), 1)


def numbers_left_out(data: Mapping[str, Any]) -> list[str]:
    """Numbers that `LEFT_OUT` says are not on the page, as JSON Pointers: what a check of the page may miss."""
    patterns = [path.split("/") for path in LEFT_OUT]
    numbers = [p for p, v in json_leaves(data) if isinstance(v, int | float) and not isinstance(v, bool)]
    return [json_pointer(p) for p in numbers if any(_matches(pattern, json_pointer(p).split("/")) for pattern in patterns)]


def _matches(pattern: list[str], path: list[str]) -> bool:
    return len(pattern) <= len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=False))


def _has(data: Mapping[str, Any], path: str) -> bool:
    return any(_matches(path.split("/"), json_pointer(p).split("/")) for p, _ in json_leaves(data))
