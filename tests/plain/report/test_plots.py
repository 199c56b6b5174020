"""Plots: the same bytes twice, their words and points in the text, and no empty picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bertc.core.errors import InputError
from bertc.report.plots import COLOURS, Plot, Series, inline_svg, render_svg

CURVE = Plot("cosine by INT8 share", "share", "cosine", [Series("max-drop", [0.5, 1.0], [0.999, 0.99])], limit=0.995)


def test_a_plot_is_text_and_the_same_twice() -> None:
    first = render_svg(CURVE)
    assert first == render_svg(CURVE)
    assert ">cosine by INT8 share<" in first and "<image" not in first


def test_another_number_is_another_picture() -> None:
    other = Plot(CURVE.title, CURVE.x, CURVE.y, [Series("max-drop", [0.5, 1.0], [0.999, 0.98])], limit=0.995)
    assert render_svg(other) != render_svg(CURVE)


def test_bars_and_intervals() -> None:
    bars = Plot("drift", "layer", "rel", [Series(n, ["a", "b"], [1e-3, 2e-3]) for n in ("fp16", "bf16")], "bar", log=True)
    assert ">fp16<" in render_svg(bars) and ">b<" in render_svg(bars)
    band = Plot("latency", "length", "ms", [Series("p50", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0])])
    assert render_svg(band) != render_svg(Plot("latency", "length", "ms", [Series("p50", [1, 2], [3.0, 4.0])]))


@pytest.mark.parametrize("kind", ["bar", "dots"])
def test_an_interval_is_drawn(kind: str) -> None:
    drop = Series("drop", ["a", "b"], [0.1, 0.2], [0.0, 0.1], [0.2, 0.4])
    bare = Series("drop", drop.xs, drop.ys)
    drawn, without = (render_svg(Plot("t", "", "y", [each], kind)).count("<path") for each in (drop, bare))
    assert drawn > without


def test_dots_over_names() -> None:
    dots = render_svg(
        Plot("errors", "", "rel", [Series(n, ["L4", "T4"], [1e-3, 1e-6]) for n in ("fp16", "bf16")], "dots", log=True)
    )
    assert all(f">{word}<" in dots for word in ("L4", "T4", "fp16", "bf16"))


def test_two_plots_in_one_page() -> None:
    """Ids of both are apart, each use and clip finds its own, no style reaches the page, and the colours are the page's."""
    parts = [inline_svg(CURVE, "a-"), inline_svg(CURVE, "b-")]
    ids = [re.findall(r'\bid="([^"]+)"', part) for part in parts]
    assert len(ids[0]) > 10 and not {*ids[0]} & {*ids[1]}
    for part, own in zip(parts, ids, strict=True):
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', part)
        assert used and {a or b for a, b in used} <= {*own}
        assert part.startswith("<svg ") and 'aria-label="cosine by INT8 share"' in part
        for word in ("<style", "metadata", "xmlns:", "#ffffff", "#000000", 'width="518'):
            assert word not in part, word
        assert "currentColor" in part and f"var(--series-0, {COLOURS[0]})" in part
        assert ">cosine by INT8 share<" in part


@pytest.mark.parametrize("kind", ["bar", "dots"])
def test_words_are_shown_as_they_are(kind: str) -> None:
    """No formula, no markup, no control character that XML cannot hold; a legend has every name."""
    words = ("$x$", "$\\frac{$", "_low", "<b>&", "a\x1b\0b", "\udcff")
    plot = Plot("t $1$", "", words[1], [Series(word, [words[3], "y"], [0.1, 0.2]) for word in words], kind)
    for text in (render_svg(plot), inline_svg(plot, "p-")):
        shown = [" ".join("".join(each.itertext()).split()) for each in ElementTree.fromstring(text).iter()]
        assert {"t $1$", "$x$", "$\\frac{$", "_low", "<b>&", r"a\x1b\x00b", r"\udcff"} <= {*shown}
        assert " style=" not in text[text.index("<svg") :] or text.startswith("<?xml")


def test_an_empty_plot_is_an_error() -> None:
    with pytest.raises(InputError, match="no point"):
        render_svg(Plot("nothing", "x", "y", [Series("a", [], [])]))
