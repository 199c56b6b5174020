"""A source without an answer at a mask that bertc made up is told of; one without an answer at an ordinary input is refused."""

from __future__ import annotations

import dataclasses

import graph_text
import numpy as np
import pytest

from bertc.core import Dim, ExportFailed
from bertc.data import Sample
from bertc.runtime import ReferenceRunner
from bertc.source import Source
from bertc.verification import check_export, export_check

# Softmax of a row of -inf is NaN, and the mean over the batch takes it to every row.
CENTRED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,length] x, int64[batch,length] {mask}) => (float[batch,length] y)
<int64[1] first = {{0}}, float low, int64 zero = {{0}}>
{{
   c = Equal ({mask}, zero)
   s = Where (c, low, x)
   p = Softmax <axis = -1> (s)
   m = ReduceMean (p, first)
   y = {last}
}}"""


def source(mask: str = "attention_mask", last: str = "Sub (p, m)") -> Source:
    graph = graph_text.graph_of(CENTRED.format(mask=mask, last=last), low=np.array(-np.inf, np.float32))
    runner = ReferenceRunner(graph)
    dims = {"batch": Dim("batch"), "length": Dim("length", 1, 40)}
    return Source("m.onnx", "onnx", "0" * 64, "custom", graph, dims, runner.run)


def checked(made: Source):
    return check_export(made, (), lambda *_: None)


@pytest.mark.parametrize("mask", ["attention_mask", "qm"])
def test_a_masked_row_that_spreads_is_told_of_and_left_out(mask):
    check = checked(source(mask))
    (note,) = [note for note in check.notes if "not checked" in note]
    assert "one row all masked" in note and "'y'" in note
    assert not any(sample.dead_rows for sample in check.samples), "it is no golden"
    assert all(np.isfinite(array).all() for outputs in check.outputs for array in outputs.values())
    assert check.comparison.result().samples == len(check.samples)


def test_a_masked_row_that_stays_alone_is_still_checked():
    check = checked(source(last="Identity (p)"))
    assert any(sample.dead_rows for sample in check.samples)
    assert not any("not checked" in note for note in check.notes)


@pytest.mark.parametrize("at", ["no padding", "right padding"])
def test_a_source_that_fails_on_an_ordinary_input_is_refused(at):
    made = source(last="Identity (p)")

    def run(feeds):
        padded = not feeds["attention_mask"].all()
        right = padded and all(np.all(np.diff(row) <= 0) for row in feeds["attention_mask"])
        bad = right if at == "right padding" else not padded
        return {name: array * np.float32(np.nan if bad else 1) for name, array in made.run(feeds).items()}

    with pytest.raises(ExportFailed, match=at):
        checked(dataclasses.replace(made, run=run))


@pytest.mark.parametrize("kind", ["left padding", "holes in the mask", "random mask"])
def test_each_mask_of_its_own_making_is_told_of(kind):
    made = source(last="Identity (p)")

    def of_kind(mask: np.ndarray) -> str:
        row = mask[-1]
        if not 0 < row.sum() < len(row):
            return ""
        steps = np.diff(row)
        return {(1, 0): "left padding", (0, 1): "right padding", (1, 1): "holes in the mask"}.get(
            (int((steps > 0).sum()), int((steps < 0).sum())), "random mask"
        )

    def run(feeds):
        factor = np.float32(np.nan if of_kind(feeds["attention_mask"]) == kind else 1)
        return {name: array * factor for name, array in made.run(feeds).items()}

    notes = checked(dataclasses.replace(made, run=run)).notes
    assert any("not checked" in note and kind in note for note in notes)


def test_a_sample_whose_rows_are_all_masked_differs_from_nothing():
    made = source(last="Identity (p)")
    feeds = {"x": np.ones((1, 3), np.float32), "attention_mask": np.zeros((1, 3), np.int64)}
    check = checked(dataclasses.replace(made, samples=(Sample("brought", feeds),)))
    assert any(sample.label == "brought" and sample.dead_rows == (0,) for sample in check.samples)


def test_where_no_sample_has_a_row_to_compare_it_is_said(monkeypatch):
    monkeypatch.setattr(export_check.data, "synthetic_samples", lambda *args, **options: ())
    made = source(last="Identity (p)")
    feeds = {"x": np.ones((1, 3), np.float32), "attention_mask": np.zeros((1, 3), np.int64)}
    with pytest.raises(ExportFailed, match="nothing was compared with the source: no row of 1 samples"):
        checked(dataclasses.replace(made, samples=(Sample("brought", feeds),)))
