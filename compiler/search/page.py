"""search.html: the front of quality and cost, the chosen student, the table of costs and every trial. From search.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..report import page, plots

COSTS = ("milliseconds", "weight_bytes", "flops", "kernels")
NAMES = {"milliseconds": "ms", "weight_bytes": "bytes of weights", "flops": "FLOPs", "kernels": "kernels or nodes"}
MEBI = 1e6


def render(document: Mapping[str, Any]) -> str:
    """The page as HTML text. Raises Missing without the extra `report`."""
    sections = [_front(document), _chosen(document), _costs(document), _curve(document), _trials(document), _fixed(document)]
    return page.made_page(document, "Architecture search", str(document["model"]["reference"]), sections)


def axis(document: Mapping[str, Any]) -> tuple[str, str, float]:
    """(key of the searched cost, its name, what it is divided by)."""
    if document["budget"]["kind"] == "latency":
        return "milliseconds", "latency, ms", 1.0
    return "weight_bytes", "weights, MB", MEBI


def shape(each: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Layers, heads, FFN and precision of a candidate as words."""
    layers, heads, ffn = (" ".join(map(str, each[name])) for name in ("layers", "heads", "ffn"))
    return layers, heads, ffn, str(each["precision"])


def _front(document: Mapping[str, Any]) -> page.Section:
    key, name, unit = axis(document)
    found = {each["number"]: each for each in document["trials"]}
    best = [found[number] for number in document["front"]]
    others = [each for each in document["trials"] if each["number"] not in document["front"]]
    series = [plots.Series("front", [each[key] / unit for each in best], [each["quality"] for each in best])]
    if others:
        series.append(plots.Series("other trials", *([f(each) for each in others] for f in _both(key, unit))))
    rows = [(("trials", each["number"], "number"), *shape(each), *_cells(document, each)) for each in best]
    line = f"Trials that no other one beats; the limit is {document['budget']['text']}. Quality before the best are trained on."
    columns = ("trial", "layers", "heads", "FFN", "precision", "quality", *_columns(document))
    return page.Section("Front", (line,), columns, rows, plots.Plot("Quality by cost", name, "quality", series, "points"))


def _both(key: str, unit: float) -> Any:
    return (lambda each: each[key] / unit), (lambda each: each["quality"])


def _columns(document: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(NAMES[key] for key in _keys(document))


def _keys(document: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in COSTS if document["costs"][0][key] is not None)


def _cells(document: Mapping[str, Any], each: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(("trials", each["number"], key) for key in ("quality", *_keys(document)))


def _chosen(document: Mapping[str, Any]) -> page.Section:
    words = ("trial", "layers", "heads", "FFN", "precision", "before", "after")
    columns = (*words, *_columns(document), "by the table", "over it by")
    key, _, _ = axis(document)
    rows: list[Any] = []
    for at, each in enumerate(document["finalists"]):
        path = ("finalists", at)
        cells = [(*path, name) for name in ("before", "after")] + [(*path, "measured", name) for name in _keys(document)]
        rows.append(((*path, "trial"), *shape(each), *cells, (*path, "table", key), (*path, "error")))
    chosen = document["chosen"]
    lines = ["The best, with costs of their own engines; the first was chosen. Quality on texts that nobody learned."]
    for where, name in (("module, float32", "measures"), ("engine", "engine")):
        found = chosen["quality"][name]
        if found:
            lines.append(
                f"On held-out texts ({where}): " + ", ".join(f"{each['name']} {each['value']:.4f}" for each in found) + "."
            )
    return page.Section("The chosen student", lines, columns, rows)


def _costs(document: Mapping[str, Any]) -> page.Section:
    rows = []
    for at, each in enumerate(document["costs"]):
        sizes = ("no layer", "") if each["heads"] is None else (("costs", at, "heads"), ("costs", at, "ffn"))
        rows.append((each["precision"], *sizes, *(("costs", at, key) for key in _keys(document))))
    bench = document["bench"]
    size = "x".join(map(str, bench["shape"].values()))
    threads = f", {bench['threads']} threads" if bench["threads"] else ""
    line = f"One layer each, {bench['target']}, batch and length {size}{threads}. A candidate is the sum of its layers."
    return page.Section("Costs", (line,), ("precision", "heads", "FFN", *_columns(document)), rows)


def _curve(document: Mapping[str, Any]) -> page.Section:
    found = document["supernet"]["losses"]
    names = [name for name in found[0] if name not in ("step", "loss")]
    series = [plots.Series(name, [each["step"] for each in found], [each[name] for each in found]) for name in names]
    plot = plots.Plot("Losses of the network that candidates share", "step", "loss", series)
    return page.Section("Training", (f"{document['supernet']['steps']} steps.",), plot=plot)


def _trials(document: Mapping[str, Any]) -> page.Section:
    rows = [
        (("trials", each["number"], "number"), *shape(each), *_cells(document, each), "yes" if each["within"] else "no")
        for each in document["trials"]
    ]
    return page.Section(
        "All trials",
        columns=("trial", "layers", "heads", "FFN", "precision", "quality", *_columns(document), "within"),
        rows=rows,
    )


def _fixed(document: Mapping[str, Any]) -> page.Section:
    return page.Section("Not searched", notes=[f"{name}: {why}" for name, why in document["space"]["not_searched"].items()])
