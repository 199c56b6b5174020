"""float16 files of ONNX Runtime's converter and of a `.half()` module: read as float32, fused, and typed again as asked."""

from __future__ import annotations

import copy

import brought
import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

# The weights are float16 already, so a float32 artifact is as far from PyTorch's float32 model as their rounding puts it.
ROUNDED_WEIGHTS = 5e-3


def converted(keep_io_types):
    return lambda model, traced, trace, path: onnx.save(
        convert_float_to_float16(onnx.load(traced), keep_io_types=keep_io_types), path
    )


def half_module(model, traced, trace, path):
    trace(copy.deepcopy(model).half(), path)


def stored_half(model, traced, trace, path):
    """Weights in float16 behind a Cast, arithmetic in float32: what weight-only tools leave."""
    made = onnx.load(traced)
    graph = made.graph
    for tensor in [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]:
        low = onnx.numpy_helper.to_array(tensor).astype("float16")
        graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(low, f"{tensor.name}_half"))
        graph.node.insert(0, onnx.helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT))
    onnx.save(made, path)


FILES = {"io float": converted(True), "io half": converted(False), "half()": half_module, "stored half": stored_half}


@pytest.mark.parametrize("name", FILES)
def test_it_is_built_as_the_float32_model_is(name, classifier, traced, trace, feeds, truth, tmp_path):
    FILES[name](classifier, traced, trace, tmp_path / "m.onnx")
    built = brought.build(tmp_path / "m.onnx", tmp_path / "out")
    assert built.code == 0, built.said
    for artifact in (brought.FLOAT32, brought.FLOAT16):
        limit = ROUNDED_WEIGHTS if artifact == brought.FLOAT32 else brought.LIMITS[artifact]
        assert brought.off(brought.answers(built.graph(artifact), feeds)["logits"], truth) < limit
    assert built.fusions()["attention"] == 2
