"""A page of sections: sentences, a table, a plot each. What a command writes whose document is no report of an artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from . import page_plots as drawn
from .marks import ReportView
from .pages import _require
from .templates import breakable, environment

Cell = str | tuple[str | int, ...]  # words, or the path of a number in the document


@dataclasses.dataclass(frozen=True)
class Section:
    """One heading and what stands below it. `plot` is a report.plots.Plot."""

    heading: str
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    plot: Any = None
    notes: Sequence[str] = ()


def made_page(document: Mapping[str, Any], what: str, title: str, sections: Sequence[Section]) -> str:
    """The page of a model that was made: `document` has bertc, summary and notes. Raises Missing without the extra `report`."""
    return sections_page(
        document,
        kicker=f"{what} by bertc {document['bertc']}",
        title=title,
        verdict=document["summary"],
        tone="good",
        sections=[*sections, Section("Notes", notes=document["notes"] or ("none",))],
    )


def sections_page(
    document: Mapping[str, Any], *, kicker: str, title: str, verdict: str, tone: str, sections: Sequence[Section]
) -> str:
    """The page as HTML text; each number of a table carries its path in the document. Raises Missing without `report`."""
    _require()
    drawings = {each.heading: each.plot for each in sections if each.plot is not None}
    plots = dict(zip(drawings, drawn.inline({f"s{at}": plot for at, plot in enumerate(drawings.values())}).values(), strict=True))
    template = environment().get_template("sections.html")
    named = {"kicker": kicker, "title": title, "verdict": verdict, "tone": tone, "sections": sections, "plots": plots}
    return breakable(template.render(n=ReportView(document).mark, **named))
