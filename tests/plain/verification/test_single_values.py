"""A map of sigmoids is no vector: each value is judged on its scale of 1, and where nothing was found that is said."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from bertc.data import Sample
from bertc.graph import Graph
from bertc.verification.budgets import DEFAULT_BUDGETS, find_violations, unshown
from bertc.verification.choices import Ties
from bertc.verification.comparison import Comparison

FP16 = DEFAULT_BUDGETS["fp16"]
ALLOWED = math.sqrt(2 - 2 * 0.9999)
WIDTH = 32
FOUND = np.zeros((1, 4, WIDTH))
FOUND[0, 1, 3:9] = 0.9  # a text on line 1; nothing on the others
NOTHING = np.full((1, 4, WIDTH), 2e-5)


def compared(expected, got, end="Sigmoid"):
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[B,4,{WIDTH}] v) => (float[B,4,{WIDTH}] x) {{ x = {end} (v) }}'
    comparison = Comparison(ties=Ties(Graph(ir.from_onnx_text(text)), ALLOWED))
    sample = Sample("s", {"v": np.asarray(expected, np.float32)})
    comparison.add({"x": np.asarray(expected)}, {"x": np.asarray(got)}, sample)
    return comparison.result()


@pytest.mark.parametrize("end", ["Sigmoid", "HardSigmoid"])
def test_the_noise_of_lines_where_nothing_is_found_is_no_error(end):
    noise = np.random.default_rng(0).uniform(0, 1e-4, FOUND.shape)
    result = compared(FOUND + noise, FOUND + noise[:, ::-1], end)
    assert result.outputs[0].cosine_min < 0.9 and not find_violations(result, FP16)
    assert find_violations(compared(FOUND + noise, FOUND + noise[:, ::-1], "Relu"), FP16), "any other map has vectors"


@pytest.mark.parametrize("error", [1.2 * ALLOWED, 0.1, 0.9])
def test_a_wrong_value_is_an_error_on_the_line_where_something_is_found_and_beside_it(error):
    for line in (1, 2):
        wrong = FOUND.copy()
        wrong[0, line, 5] = abs(wrong[0, line, 5] - error)
        assert [v.metric for v in find_violations(compared(FOUND, wrong), FP16)] == ["relative error"]


def test_a_softmax_stays_a_vector():
    made = np.full((1, 4, WIDTH), 1 / WIDTH)
    other = made.copy()
    other[..., ::2] *= 0.95
    assert [v.metric for v in find_violations(compared(made, other, "Softmax"), FP16)] == ["cosine"]


def test_where_nothing_is_found_at_all_it_is_said_that_nothing_is_shown():
    blank = compared(NOTHING, NOTHING * 0)
    assert not find_violations(blank, FP16)
    (note,) = unshown(blank, FP16)
    assert "'x'" in note and "2e-05" in note and "--data" in note
    assert not unshown(compared(FOUND, FOUND), FP16)
    assert not unshown(compared(NOTHING, NOTHING, "Relu"), FP16), "a cosine has no scale that could be missed"
