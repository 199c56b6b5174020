"""Plots as SVG text: small, the same bytes for the same numbers, and readable inside a page as in a file of their own."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..core import InputError, Missing, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b6e99", "#c8553d", "#5a8f29", "#7d5ba6", "#b58900", "#444444")  # told apart without colour vision, and in print
INK, PAPER, RULE = "#000000", "#ffffff", "#dddddd"
SIZE = (7.2, 3.6)  # inches: a third of a screen, all of a phone's width
ROOM = 48  # letters of names that stand side by side under the smallest plot
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_NOT_INLINE = (f"{_SVG}metadata", f"{_SVG}style")  # a style inside an inline <svg> is a style of the whole page


@dataclasses.dataclass(frozen=True)
class Series:
    """A line or a row of bars: `xs` are numbers, or names for bars; `low` and `high` are the ends of the intervals of `ys`."""

    name: str
    xs: Sequence[Any]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Plot:
    """What a plot shows. `limit` draws a line across at that value; `log` makes the vertical axis logarithmic."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: str = "line"  # or bar, dots, points
    limit: float | None = None
    log: bool = False
    size: tuple[float, float] = SIZE


def render_svg(plot: Plot) -> str:
    """The plot as SVG text, its words as text and never as formulas, what is invisible in them escaped.

    Raises Missing where matplotlib is not installed, InputError for an empty plot.
    """
    if not any(len(series.ys) for series in plot.series):
        raise InputError(f"the plot {plot.title!r} has no point to show")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise Missing("plots need matplotlib: pip install 'bertc[report]'") from error
    plot = _printable(plot)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.size": 9}):
        figure = Figure(figsize=plot.size, layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure.subplots(), plot)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "bertc"})
    return text.getvalue()


def _printable(plot: Plot) -> Plot:
    """The plot with words that XML can hold, and that matplotlib takes as they are: it reads what stands between two `$` as a
    formula, and leaves `_name` out of a legend."""

    def word(text: str) -> str:
        return one_line(text).replace("$", r"\$")

    series = []
    for each in plot.series:
        name = f" {each.name}" if each.name.startswith("_") else each.name
        xs = [word(x) if isinstance(x, str) else x for x in each.xs]
        series.append(dataclasses.replace(each, name=word(name), xs=xs))
    return dataclasses.replace(plot, series=series, title=word(plot.title), x=word(plot.x), y=word(plot.y))


def inline_svg(plot: Plot, prefix: str) -> str:
    """The plot as an <svg> element for a page: as wide as its place, in the page's colours (light or dark), its title for a
    reader that does not see it. `prefix` is unlike that of any other plot of the page: ids of two plots would clash.

    Its own background is left out; ink is `currentColor`, series have the colours --series-0 and on, rules --rule. Styles are
    presentation attributes (`fill="..."`): a Content-Security-Policy forbids style attributes.
    """
    names = {INK: "currentColor", RULE: f"var(--rule, {RULE})"}
    names |= {colour: f"var(--series-{at}, {colour})" for at, colour in enumerate(COLOURS)}
    root = ElementTree.fromstring(render_svg(plot))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _NOT_INLINE or PAPER in child.get("style", ""):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for key, value in list(element.attrib.items()):
            element.attrib[key] = _inlined(key.rpartition("}")[2], value, prefix, names)
            element.attrib[key.removeprefix(_XLINK)] = element.attrib.pop(key)
        for part in filter(None, element.attrib.pop("style", "").split(";")):
            name, _, value = part.partition(":")
            element.attrib[name.strip()] = value.strip()
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": plot.title, "stroke-linejoin": "round", "class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _inlined(key: str, value: str, prefix: str, names: Mapping[str, str]) -> str:
    """An attribute with its ids prefixed and its colours named."""
    if key == "id":
        return prefix + value
    if key == "href":
        return value.replace("#", f"#{prefix}", 1)
    value = value.replace("url(#", f"url(#{prefix}")
    for colour, name in names.items() if key == "style" else ():
        value = value.replace(colour, name)
    return value


def _draw(axes: Axes, plot: Plot) -> None:
    for index, series in enumerate(plot.series):
        DRAWN[plot.kind](axes, series, index, len(plot.series))
    if plot.limit is not None:
        axes.axhline(plot.limit, color="#888888", linestyle="--", linewidth=1)
    if plot.log:
        axes.set_yscale("log")
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.grid(visible=True, axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1:
        axes.legend(frameon=False)


def _line(axes: Axes, series: Series, index: int, count: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(series.xs, series.ys, color=colour, marker="o", markersize=3, linewidth=1.4, label=series.name)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.xs, series.low, series.high, color=colour, alpha=0.18, linewidth=0)


def _bars(axes: Axes, series: Series, index: int, count: int) -> None:
    width = 0.8 / count
    places = [position + (index - (count - 1) / 2) * width for position in range(len(series.xs))]
    axes.bar(places, series.ys, width, color=COLOURS[index % len(COLOURS)], label=series.name)
    _ends(axes, series, places)
    _names(axes, series)


def _dots(axes: Axes, series: Series, index: int, count: int) -> None:
    """Points over names: for a logarithmic axis, where the length of a bar means nothing, and for differences of zero."""
    places = [position + (index - (count - 1) / 2) * 0.15 for position in range(len(series.xs))]
    axes.plot(places, series.ys, color=COLOURS[index % len(COLOURS)], marker="o", linestyle="none", label=series.name)
    _ends(axes, series, places)
    axes.set_xlim(-0.5, len(series.xs) - 0.5)
    _names(axes, series)


def _ends(axes: Axes, series: Series, places: Sequence[float]) -> None:
    """The intervals round bars or dots."""
    if series.low is None or series.high is None:
        return
    below = [y - low for y, low in zip(series.ys, series.low, strict=True)]
    above = [high - y for y, high in zip(series.ys, series.high, strict=True)]
    axes.errorbar(places, series.ys, [below, above], fmt="none", ecolor=INK, capsize=4, linewidth=1.2)


def _names(axes: Axes, series: Series) -> None:
    names = [str(x) for x in series.xs]
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > ROOM:
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")


def _points(axes: Axes, series: Series, index: int, count: int) -> None:
    """Points over numbers, the first series joined by steps: a front among what it beats."""
    style: dict[str, Any] = {"linestyle": "-", "drawstyle": "steps-post"} if index == 0 else {"linestyle": "none"}
    axes.plot(series.xs, series.ys, color=COLOURS[index % len(COLOURS)], marker="o", markersize=3, label=series.name, **style)


DRAWN = {"line": _line, "bar": _bars, "dots": _dots, "points": _points}
