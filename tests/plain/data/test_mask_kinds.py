"""Masks of every type and spelling get 0 and 1, or what is added to scores: random floats in their place test nothing."""

from __future__ import annotations

import numpy as np
import ports
import pytest

from bertc.data import dead_rows, mask_feeds
from bertc.data.mask_kinds import ADDITIVE, BINARY, LOW, mask_kinds
from bertc.data.synthetic import synthetic_samples
from bertc.fusions.engine import fuse
from bertc.source import open_source
from bertc.verification import check_export, check_fused

KINDS = {
    "float": {"mask_type": "float"},
    "bool": {"mask_type": "bool"},
    "uint8": {"mask_type": "uint8"},
    "float of rank 4": {"mask_type": "float", "rank": 4},
    "int32 of rank 3": {"mask_type": "int32", "rank": 3},
    "a float under a name of its own": {"mask_type": "float", "mask": "padding"},
    "input_mask": {"mask": "input_mask"},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_mask_holds_0_and_1_and_the_graph_is_the_model(tmp_path, kind):
    made = KINDS[kind]
    source = open_source(str(ports.encoder(tmp_path / "m.onnx", **made)))
    name = made.get("mask", "attention_mask")
    assert mask_kinds(source.graph)[name] == BINARY
    samples = synthetic_samples(source.graph, source.dims)
    assert all(set(np.unique(sample.feeds[name])) <= {0, 1} for sample in samples)
    assert any(0 < np.mean(sample.feeds[name]) < 1 for sample in samples)
    proof = check_export(source, (), lambda *_: None)
    check_fused(fuse(source.graph, source.dims), source, proof)


def test_a_mask_that_is_added_holds_0_and_a_low_number(tmp_path):
    source = open_source(str(ports.encoder(tmp_path / "m.onnx", mask="attention_bias", mask_type="float", additive=True)))
    assert mask_kinds(source.graph) == {"attention_bias": ADDITIVE}
    samples = synthetic_samples(source.graph, source.dims)
    assert {float(number) for s in samples for number in np.unique(s.feeds["attention_bias"])} == {0.0, LOW}
    check_export(source, (), lambda *_: None)


def test_a_float_feature_is_no_mask(tmp_path):
    path = ports.encoder(
        tmp_path / "m.onnx",
        extra_inputs=", float[batch, length] weight",
        extra_outputs=", float[batch, length] twice",
        extra_nodes="twice = Add(weight, weight)",
    )
    assert mask_kinds(open_source(str(path)).graph) == {"attention_mask": BINARY}


def test_zeros_of_a_float_mask_that_is_added_are_no_dead_row():
    added = {"attention_mask": np.array([[0.0, 0.0], [0.0, -1e4]], np.float32)}
    assert (mask_feeds(added), dead_rows(added)) == ({}, ())
    assert dead_rows({"attention_mask": np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)}) == (1,)
