"""The streamed file must be the file protobuf would write: same content, read by every reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertc.graph import stream as onnx_file

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_, np.float64)


def model_of(arrays: list[np.ndarray]) -> ir.Model:
    values = []
    for index, array in enumerate(arrays):
        tensor = ir.tensor(array, name=f"w{index}")
        values.append(
            ir.Value(name=f"w{index}", shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    nodes = [ir.Node("", "Identity", [value], name=f"n{i}") for i, value in enumerate(values)]
    for node, value in zip(nodes, values, strict=True):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"y_{node.name}", value.type, value.shape
    outputs = [n.outputs[0] for n in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, name="g", opset_imports={"": 20})
    return ir.Model(graph, ir_version=10, metadata_props={"key": "value"})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 5000, 16383, 16384, 70000]), min_size=1, max_size=5),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=5, max_size=5),
)
def test_equal_to_what_protobuf_writes(tmp_path: Path, sizes: list[int], dtypes: list[type]) -> None:
    rng = np.random.default_rng(sum(sizes))
    arrays = [rng.integers(0, 2, size).astype(dtype) for size, dtype in zip(sizes, dtypes, strict=False)]
    model = model_of(arrays)
    path = tmp_path / "m.onnx"
    assert onnx_file.write_model(model, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    read, wanted = onnx.load(path), ir.to_proto(model)
    onnx.checker.check_model(read, full_check=True)
    assert list(read.graph.node) == list(wanted.graph.node)
    assert list(read.graph.output) == list(wanted.graph.output)
    assert (read.ir_version, read.opset_import, read.metadata_props) == (
        wanted.ir_version,
        wanted.opset_import,
        wanted.metadata_props,
    )
    got = {t.name: onnx.numpy_helper.to_array(t) for t in read.graph.initializer}
    assert len(read.graph.initializer) == len(arrays)
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(got[f"w{index}"], array)


def test_the_model_keeps_its_weights_and_peak_memory_is_one_tensor(tmp_path: Path) -> None:
    import tracemalloc

    model = model_of([np.zeros(2**20, np.float32) for _ in range(16)])
    tracemalloc.start()
    onnx_file.write_model(model, tmp_path / "m.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(model.graph.initializers) == 16
    assert peak < 3 * 2**22, "64 MiB of weights must not be in memory at once"
    assert (tmp_path / "m.onnx").stat().st_size == pytest.approx(16 * 2**22, rel=0.01)


def test_onnxruntime_reads_it(tmp_path: Path) -> None:
    import onnxruntime

    array = np.arange(9000, dtype=np.float32)
    onnx_file.write_model(model_of([array]), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], array)
