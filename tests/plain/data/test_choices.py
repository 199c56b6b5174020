"""A number that a graph asks for is fed to it, so that each way of an If is run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_text import graph_of

from bertc.core import Dim
from bertc.data import choices_of
from bertc.data import synthetic as data
from bertc.runtime import ReferenceRunner
from bertc.source.size_trial import Trial

RATES = """<ir_version: 10, opset_import: ["" : 20]>
rates (float[batch,N] x, int64{shape} sr) => (float[batch,M] y)
<int64 rate = {{16000}}, float two = {{2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[2] window = {{1, 8}}>
{{
   is16 = Equal ({read}, rate)
   y = If (is16) <
     then_branch = wide () => (float[batch,M] a) {{ a = Mul (x, two) }},
     else_branch = narrow () => (float[batch,M] b) {{ b = Expand (x, window) }}
   >
}}"""


def rates(shape: str = "", read: str = "sr"):
    proto = onnx.parser.parse_model(RATES.format(shape=shape, read=read))
    onnx.checker.check_model(proto)
    return graph_of(RATES.format(shape=shape, read=read), rate=np.array(16000), two=np.float32(2), window=np.array([1, 8]))


def test_both_ways_of_an_if_are_fed() -> None:
    graph, dims = rates(), {"batch": Dim("batch"), "N": Dim("N", 1, 64)}
    assert choices_of(graph) == {"sr": (16000, 0)}
    assert {int(sample.feeds["sr"]) for sample in data.synthetic_samples(graph, dims)} == {16000, 0}


def test_a_size_is_refused_where_one_way_refuses_it() -> None:
    """The narrow way spreads x over 8: it takes N of 1 and 8 alone, the other takes any."""
    graph, dims = rates(), {"batch": Dim("batch"), "N": Dim("N", 1, 64)}
    trial = Trial(graph, dims, ReferenceRunner(graph).run)
    assert not trial.refused({"batch": 1, "N": 8}) and trial.refused({"batch": 1, "N": 5})


@pytest.mark.parametrize("text", ["token ids", "a vector"])
def test_what_is_no_single_number_is_left_alone(text: str) -> None:
    """RoBERTa compares its ids with the padding's: they are no choice of two."""
    shape = {"token ids": "[batch,N]", "a vector": "[3]"}[text]
    source = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (int64{shape} ids) => (bool{shape} y) <int64 pad = {{1}}> {{ y = Equal (ids, pad) }}"""
    assert choices_of(graph_of(source, pad=np.array(1))) == {}
