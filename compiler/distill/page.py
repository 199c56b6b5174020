"""distillation.html: what was lost, by which measure, against the untrained cut; how the losses fell. From distillation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report import page, plots


def render(document: Mapping[str, Any]) -> str:
    """The page as HTML text. Raises Missing without the extra `report`."""
    quality = document["quality"]
    sections = [
        page.Section(
            "What was lost",
            lines=(f"On {document['texts']['held_out']} texts that nothing was learned from; 95 % intervals.",),
            columns=("measure", "untrained cut", "student", "from", "to", "texts"),
            rows=[
                (each["name"], ("quality", "untrained", at, "value"), *(("quality", "student", at, key) for key in ENDS))
                for at, each in enumerate(quality["student"])
            ],
            plot=_quality_plot(quality),
        ),
    ]
    if quality["tasks"]:
        sections.append(
            page.Section(
                "By the task",
                columns=("metric", "teacher", "student", "drop", "from", "to", "rows", "untrained cut"),
                rows=[
                    (each["name"], *(("quality", "tasks", at, key) for key in TASK)) for at, each in enumerate(quality["tasks"])
                ],
            )
        )
    sections += [_shape_section(document), *_curves(document)]
    title = " + ".join(each["reference"] for each in document["teachers"])
    return page.made_page(document, "Distillation", title, sections)


ENDS = ("value", "low", "high", "rows")
TASK = ("teacher", "student", "drop", "low", "high", "rows", "untrained")


def _quality_plot(quality: Mapping[str, Sequence[Mapping[str, Any]]]) -> plots.Plot:
    names = [each["name"] for each in quality["student"]]
    series = []
    for name, key in (("untrained cut", "untrained"), ("student", "student")):
        found = quality[key]
        ends = [[each[end] for each in found] for end in ("low", "high")]
        known = None not in (*ends[0], *ends[1])
        series.append(plots.Series(name, names, [each["value"] for each in found], *(ends if known else ())))
    return plots.Plot("Quality on held-out texts", "", "measure, 95 % interval", series, "bar")


def _shape_section(document: Mapping[str, Any]) -> page.Section:
    names = ("layers", "width", "ffn", "heads", "parameters", "bytes")
    rows = [(name, ("shape", "teacher", name), ("shape", "student", name)) for name in names]
    taken = ", ".join(map(str, document["layers"]))
    return page.Section(
        "Shape", lines=(f"The student has the layers {taken} of its teacher.",), columns=("", "teacher", "student"), rows=rows
    )


def _curves(document: Mapping[str, Any]) -> list[page.Section]:
    training = document["training"]
    names = [name for name in training["losses"][0] if name not in ("step", "loss")] if training["losses"] else []
    made = []
    if names:
        steps = [each["step"] for each in training["losses"]]
        series = [plots.Series(name, steps, [each[name] for each in training["losses"]]) for name in names]
        positive = all(value > 0 for each in series for value in each.ys)
        made.append(page.Section("Losses", plot=plots.Plot("Losses while learning", "step", "loss", series, log=positive)))
    found = training["evaluations"]
    series = [plots.Series("held-out", [each["step"] for each in found], [each["value"] for each in found])]
    plot = plots.Plot("Held-out measure", "step", document["watched"], series)
    made.append(page.Section("Held-out measure", lines=(f"The state of step {training['best_step']} was kept.",), plot=plot))
    return made
