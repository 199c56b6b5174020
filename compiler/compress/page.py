"""compression.html: what each step took out of the engine and what it cost in quality, before and after the repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..report import page, plots

ENGINE = ("flops", "weight_bytes", "kernels", "moved_bytes")


def render(document: Mapping[str, Any]) -> str:
    """The page as HTML text. Raises Missing without the extra `report`."""
    sections = [_quality(document), *_tasks(document), _engine(document), _steps(document), *_curve(document)]
    return page.made_page(document, "Compression", str(document["model"]["reference"]), sections)


def stages(document: Mapping[str, Any]) -> list[tuple[str, tuple[str | int, ...]]]:
    """(name, path in the document) of the original, each step and the repair."""
    rows: list[tuple[str, tuple[str | int, ...]]] = [("original", ("original",))]
    rows += [(each["said"], ("steps", at)) for at, each in enumerate(document["steps"])]
    if document["recovery"]:
        rows.append((f"repair of {document['recovery']['steps']} steps", ("recovery",)))
    return rows


def at(document: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:
    """What a path leads to."""
    found: Any = document
    for key in path:
        found = found[key]
    return found


def _quality(document: Mapping[str, Any]) -> page.Section:
    measures = [each["name"] for each in document["original"]["quality"]["measures"]]
    columns = ["", *(f"{name}{end}" for name in measures for end in ("", ", from", ", to"))]
    rows: list[tuple[str | tuple[str | int, ...], ...]] = []
    for name, path in stages(document):
        cells = [(*path, "quality", "measures", n, key) for n in range(len(measures)) for key in ("value", "low", "high")]
        rows.append((name, *cells))
    names = [name for name, _ in stages(document)]
    series = []
    for n, measure in enumerate(measures):
        found = [at(document, (*path, "quality", "measures", n)) for _, path in stages(document)]
        ends = [[each[end] for each in found] for end in ("low", "high")]
        known = None not in (*ends[0], *ends[1])
        series.append(plots.Series(measure, names, [each["value"] for each in found], *(ends if known else ())))
    held_out = document["texts"]["held_out"]
    line = f"Against the original, on {held_out} texts that nothing was measured or learned on; 95 % intervals."
    return page.Section(
        "What was lost", (line,), columns, rows, plots.Plot("Quality", "", "measure, 95 % interval", series, "bar")
    )


def _tasks(document: Mapping[str, Any]) -> list[page.Section]:
    tasks = document["original"]["quality"]["tasks"]
    keys = ("original", "value", "drop", "low", "high", "rows")
    rows: list[tuple[str | tuple[str | int, ...], ...]] = [
        (f"{name}: {task['name']}", *((*path, "quality", "tasks", n, key) for key in keys))
        for name, path in stages(document)[1:]
        for n, task in enumerate(tasks)
    ]
    columns = ("", "original", "compressed", "drop", "from", "to", "rows")
    return [page.Section("By the task", columns=columns, rows=rows)] if rows else []


def _engine(document: Mapping[str, Any]) -> page.Section:
    first = document["original"]["engine"]
    counted = (
        f"At batch and length {first['shape']}; kernels are {first['counted']}. No time was measured."
        if first
        else "Not compiled."
    )
    moved = first is not None and first["moved_bytes"] is not None
    keys = [key for key in ENGINE if key != "moved_bytes" or moved]
    names = {"flops": "FLOPs", "weight_bytes": "bytes of weights", "kernels": "kernels", "moved_bytes": "bytes moved"}
    rows: list[Any] = []
    for name, path in stages(document):
        if path != ("recovery",) and first is not None:
            rows.append((name, *((*path, "engine", key) for key in keys), (*path, "shape", "parameters")))
    return page.Section("The engine", (counted,), ("", *(names[key] for key in keys), "parameters"), rows)


def _steps(document: Mapping[str, Any]) -> page.Section:
    rows = []
    for name, path in stages(document):
        if path != ("recovery",):
            shape = at(document, (*path, "shape"))
            heads, neurons = (", ".join(map(str, shape[key])) for key in ("heads", "ffn"))
            rows.append((name, (*path, "shape", "layers"), heads, neurons))
    return page.Section("Shape", columns=("", "layers", "heads by layer", "FFN by layer"), rows=rows)


def _curve(document: Mapping[str, Any]) -> list[page.Section]:
    if not document["recovery"]:
        return []
    found = document["recovery"]["training"]["evaluations"]
    series = [plots.Series("held-out", [each["step"] for each in found], [each["value"] for each in found])]
    plot = plots.Plot("Held-out measure while repaired", "step", "more is better", series)
    return [page.Section("Repair", (f"The state of step {document['recovery']['best_step']} was kept.",), plot=plot)]
