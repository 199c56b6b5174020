"""Plots: the same bytes twice, their words and points in the text, and no empty picture."""

from __future__ import annotations

import pytest

from bertc.errors import InputError
from bertc.plots import Plot, Series, svg

CURVE = Plot("cosine by INT8 share", "share", "cosine", [Series("max-drop", [0.5, 1.0], [0.999, 0.99])], limit=0.995)


def test_a_plot_is_text_and_the_same_twice() -> None:
    first = svg(CURVE)
    assert first == svg(CURVE)
    assert ">cosine by INT8 share<" in first and "<image" not in first


def test_another_number_is_another_picture() -> None:
    other = Plot(CURVE.title, CURVE.x, CURVE.y, [Series("max-drop", [0.5, 1.0], [0.999, 0.98])], limit=0.995)
    assert svg(other) != svg(CURVE)


def test_bars_and_intervals() -> None:
    bars = Plot("drift", "layer", "rel", [Series(n, ["a", "b"], [1e-3, 2e-3]) for n in ("fp16", "bf16")], "bar", log=True)
    assert ">fp16<" in svg(bars) and ">b<" in svg(bars)
    band = Plot("latency", "length", "ms", [Series("p50", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0])])
    assert svg(band) != svg(Plot("latency", "length", "ms", [Series("p50", [1, 2], [3.0, 4.0])]))


def test_an_empty_plot_is_an_error() -> None:
    with pytest.raises(InputError, match="no point"):
        svg(Plot("nothing", "x", "y", [Series("a", [], [])]))
