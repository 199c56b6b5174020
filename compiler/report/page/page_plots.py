"""The plots of a page: which numbers stand on which axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .. import plots
from ..plots import Plot, Series

KEPT = "kept: "  # what the measures of decisions, without labels, begin with
SIZE = (4.6, 2.9)  # inches: on a phone its text is as large as that of the page


def inline(drawings: Mapping[str, Plot]) -> dict[str, Markup]:
    """Each plot as an <svg> element. Raises Missing without matplotlib, needed only where there is a plot."""
    return {name: Markup(plots.inline_svg(plot, f"{name}-")) for name, plot in drawings.items()}


def decisions_plot(measures: Sequence[Mapping[str, Any]], budget: Mapping[str, Any]) -> Plot:
    """How much worse than the source each metric is, with its 95 % interval, beside its limit."""
    columns = [[m[key] for m in measures] for key in ("drop", "low", "high")]
    agreement = budget.get("agreement")
    limits = [budget.get("max_drop"), None if agreement is None else 1 - agreement, budget.get("alarm")]
    limit = next((each for each in limits if each is not None), None)
    kept = all(m["name"].startswith(KEPT) for m in measures)
    title, y = ("Decisions that changed", "share changed") if kept else ("Drop against the source", "drop")
    series = [Series("drop", [m["name"].removeprefix(KEPT) for m in measures], *columns)]
    return Plot(title, "", f"{y}, 95 % interval", series, "dots", limit, size=SIZE)


def drift_plot(relative: Sequence[Any]) -> Plot:
    """The relative error after each layer, in the order they run; one that is no number ("inf") is left out."""
    found = [(place, error) for place, error in enumerate(relative, 1) if isinstance(error, int | float)]
    places, errors = zip(*found, strict=True)
    series = [Series("relative error", places, errors)]
    return Plot("Drift by layer", "position in the table", "relative error", series, log=min(errors) > 0, size=SIZE)


def int8_plot(int8: Mapping[str, Any]) -> Plot:
    """The metric over the share of GEMM FLOPs in int8."""
    curve = sorted(int8["curve"], key=lambda point: point["share"])
    shares, values = ([point[key] for point in curve] for key in ("share", "value"))
    low, high = ([point.get(key) for point in curve] for key in ("low", "high"))
    ends = () if None in (*low, *high) else (low, high)
    return Plot(
        "INT8 trade-off",
        "share of GEMM FLOPs in int8",
        int8["metric"],
        [Series("value", shares, values, *ends)],
        limit=int8["budget"],
        size=SIZE,
    )


def error_plot(rows: Sequence[tuple[str, str, float]]) -> Plot:
    """The relative error of (place, precision, error), side by side."""
    rows = [(_literal(place), _literal(precision), error) for place, precision, error in rows]
    places = list(dict.fromkeys(place for place, _, _ in rows))
    found = {(place, precision): error for place, precision, error in rows}
    kinds = list(dict.fromkeys(precision for _, precision, _ in rows))
    series = [Series(kind, places, [found.get((place, kind), float("nan")) for place in places]) for kind in kinds]
    log = min(error for _, _, error in rows) > 0
    return Plot("Relative error by GPU and precision", "", "relative error", series, "dots", log=log, size=SIZE)


def _literal(text: str) -> str:
    """Text of a file that matplotlib must not read as mathematics between dollar signs."""
    return text.replace("$", r"\$")
