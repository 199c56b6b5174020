"""A model whose layers share their weights holds each of them once, in every form that is built of it."""

from __future__ import annotations

import collections
from pathlib import Path

import models
import onnx
import pytest

import bertc

ALBERT = {
    "vocab_size": 99, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
TARGETS = ("null=fp32", "onnxruntime=fp16", "onnxruntime=int8-weights")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("albert")
    models.save("AlbertModel", "AlbertConfig", ALBERT, folder / "source")
    bertc.build(str(folder / "source"), folder / "out", targets=TARGETS)
    return folder / "out"


def stored(path: Path) -> tuple[int, int]:
    """(bytes of all initializers, bytes of the different ones)."""
    arrays = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    different = {(str(array.dtype), array.shape, array.tobytes()) for array in arrays}
    return sum(array.nbytes for array in arrays), sum(len(data) for _, _, data in different)


def test_each_weight_is_stored_once(built: Path) -> None:
    graphs = sorted(built.glob("*/graph.onnx"))
    assert len(graphs) == len(TARGETS)
    for path in graphs:
        whole, different = stored(path)
        assert whole == different, path.parent.name


def test_it_is_the_size_of_one_layer(built: Path) -> None:
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 4 * 32
    around = 99 * 16 + 64 * 16 + 2 * 16 + 2 * 16 + 16 * 32 + 32 + 32 * 32 + 32
    whole, _ = stored(built / "null-fp32" / "graph.onnx")
    assert 0 <= whole - 4 * (layer + around) < 1024, "positions and a few sizes are whole numbers"
    uses = collections.Counter(name for node in onnx.load(built / "null-fp32" / "graph.onnx").graph.node for name in node.input)
    shapes = {each.name: tuple(each.dims) for each in onnx.load(built / "null-fp32" / "graph.onnx").graph.initializer}
    assert {uses[name] for name, shape in shapes.items() if 64 in shape and len(shape) == 2 and 32 in shape} == {5}, "five layers"
