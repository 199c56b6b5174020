"""A mask that is 1 where padding is, as nn.MultiheadAttention wants it: what pads marks its padding, by any name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import tiny
from onnx import TensorProto, numpy_helper

import bertc
from bertc.serve.batches import Batching


@pytest.fixture(scope="module", params=["key_padding_mask", "hidden"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny's encoder without its `1 - mask`."""
    folder, name = tmp_path_factory.mktemp("inverted"), request.param
    nodes = [node for node in tiny.nodes() if node.output[0] != "masked"]
    for node in nodes:
        node.input[:] = [{"attention_mask": name, "masked": "mask"}.get(each, each) for each in node.input]
    inputs = [oh.make_tensor_value_info(each, TensorProto.INT64, tiny.DIMS) for each in ("input_ids", name)]
    outputs = [oh.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tiny.DIMS, tiny.WIDTH])]
    stored = [numpy_helper.from_array(array, key) for key, array in tiny.weights().items()]
    graph = oh.make_graph(nodes, "inverted", inputs, outputs, stored)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    bertc.build(str(folder / "m.onnx"), folder / "out", targets=["onnxruntime"], profiles=["batch=1:2:4,length=1:16:16"])
    return folder / "out"


def test_padding_changes_nothing(artifact: Path) -> None:
    runner = bertc.load(artifact)
    ids, mask = (spec.name for spec in runner.inputs)
    assert runner.masks == {mask: "inverted"}
    row = {ids: np.array([[4, 5, 6, 7, 5]]), mask: np.array([[0, 0, 1, 0, 0]])}
    alone = runner.run(row)["last_hidden_state"]
    assert runner.bucket(row)[mask].tolist() == [[0, 0, 1, 0, 0] + [1] * 11]
    np.testing.assert_allclose(runner.run_padded(row)["last_hidden_state"], alone, atol=1e-5)


def test_rows_share_a_batch(artifact: Path) -> None:
    runner = bertc.load(artifact)
    ids, mask = (spec.name for spec in runner.inputs)
    batching = Batching.of(runner.inputs, runner.outputs, 0, runner.masks)
    rows = [{ids: np.full((1, n), 4 + n % 3), mask: np.zeros((1, n), np.int64)} for n in (3, 11)]
    found = batching.split(runner.run(batching.stack(rows)), rows)
    for row, got in zip(rows, found, strict=True):
        np.testing.assert_allclose(got["last_hidden_state"], runner.run(row)["last_hidden_state"], atol=1e-5)
