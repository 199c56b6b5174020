"""An .onnx file as a source. No torch takes part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto

from bertc.core.errors import SourceError
from bertc.source import onnx_file as onnx_source
from bertc.source.opening import open_reference, open_source
from bertc.source.types import SourceOptions

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def tiny(path, dims=("batch", "length"), weight=None, opset=17, out=("batch", "length", 4), external=False, node=None):
    """Gather + MatMul: ids -> states."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    weight = rng.standard_normal((4, 4)).astype(np.float32) if weight is None else weight
    nodes = [oh.make_node("Gather", ["table", "ids"], ["x"]), node or oh.make_node("MatMul", ["x", "w"], ["y"])]
    ports = [oh.make_tensor_value_info("ids", INT64, dims)], [oh.make_tensor_value_info("y", FLOAT, out)]
    weights = [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(weight, "w")]
    imports = [oh.make_opsetid("", opset), *([oh.make_opsetid(node.domain, 1)] if node and node.domain else [])]
    model = oh.make_model(oh.make_graph(nodes, "g", *ports, weights), opset_imports=imports, ir_version=8)
    kind = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0} if external else {}
    onnx.save(model, path, **kind)
    return path


def refused(path, *words):
    with pytest.raises(SourceError) as caught:
        open_source(str(path))
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_runs_and_names(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    source = open_source(str(tiny(tmp_path / "m.onnx")), SourceOptions(ids="int32"))
    assert (source.kind, source.task) == ("onnx", "custom")
    (note,) = source.notes
    assert "transformers cannot load" in note  # that tokenizer.json is none
    assert [str(s) for s in source.graph.inputs] == ["ids: int32[batch, length]"]
    assert list(source.dims) == ["batch", "length"]
    assert [path.name for path in source.assets] == ["tokenizer.json"]
    feeds = {"ids": np.ones((2, 3), np.int32)}
    assert source.run(feeds)["y"].shape == (2, 3, 4)
    found = open_reference(source.reference)
    assert found.sha256 == source.sha256 and np.array_equal(found.run(feeds)["y"], source.run(feeds)["y"])


def test_no_torch_takes_part(tmp_path):
    code = "import sys\nfrom bertc.source import open_source\nsource = open_source(sys.argv[1])\nprint('torch' in sys.modules)"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    path = str(tiny(tmp_path / "m.onnx"))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=paths, check=True)
    assert done.stdout.strip() == "False", done.stderr


def test_sha256_covers_external_data(tmp_path):
    path = tiny(tmp_path / "m.onnx", external=True)
    first = open_source(str(path)).sha256
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert open_source(str(path)).sha256 != first
    (tmp_path / "w.bin").write_bytes(data[:-1])
    refused(path, "w.bin")
    (tmp_path / "w.bin").unlink()
    refused(path, "w.bin", "missing")


def test_unnamed_dims_get_stable_names(tmp_path):
    source = open_source(str(tiny(tmp_path / "m.onnx", dims=(None, 5), out=(None, 5, 4))))
    assert list(source.dims) == ["batch"] and "ids_d0" in source.notes[0] and "batch (ids_d0)" in source.notes[1]
    assert source.graph.outputs[0].dims == ("batch", 5, 4), "an output's is what inference finds"


def test_missing_types_are_inferred(tmp_path):
    path = tiny(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert open_source(str(path)).graph.outputs[0].dims == ("batch", "length", 4)


def test_weights_listed_as_inputs_are_constants(tmp_path):
    path = tiny(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(oh.make_tensor_value_info("w", FLOAT, (4, 4)))
    onnx.save(model, path)
    source = open_source(str(path))
    assert [s.name for s in source.graph.inputs] == ["ids"] and "constants" in source.notes[0]


def test_bad_files(tmp_path):
    data = tiny(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "half.onnx", "half.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "empty.onnx")
    refused(tmp_path / "n.onnx", "did you mean 'm.onnx'")
    refused(tiny(tmp_path / "old.onnx", opset=10), "opset 10", "11")
    weight = np.zeros((4, 4), np.float32)
    weight[1, 1] = np.nan
    refused(tiny(tmp_path / "nan.onnx", weight=weight), "NaN", "w")
    weight[1, 1] = -np.inf
    open_source(str(tiny(tmp_path / "inf.onnx", weight=weight)))
    custom = oh.make_node("Magic", ["x", "w"], ["y"], domain="acme")
    refused(tiny(tmp_path / "custom.onnx", node=custom), "acme.Magic")
    refused(tiny(tmp_path / "invalid.onnx", node=oh.make_node("MatMul", ["x", "nowhere"], ["y"])), "MatMul", "'nowhere'")
    assert "acme" not in open_source(str(tmp_path / "m.onnx")).graph.op_counts()


def test_a_directory_with_one_onnx_file(tmp_path):
    tiny(tmp_path / "m.onnx")
    assert open_source(str(tmp_path)).kind == "onnx"
    tiny(tmp_path / "n.onnx")
    refused(tmp_path, "2 .onnx files")


def test_nan_in_the_last_piece_of_a_weight(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_source, "PIECE", 5)
    weight = np.zeros((4, 4), np.float32)
    weight[3, 3] = np.nan
    refused(tiny(tmp_path / "nan.onnx", weight=weight), "NaN", "w")


def test_a_missing_file_among_many_is_told_its_neighbours_in_short(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"m{number:02}.onnx").touch()
    (tmp_path / ".out.tmp-1").mkdir()
    with pytest.raises(SourceError, match=r"did you mean 'm.7\.onnx'") as error:
        open_source(str(tmp_path / "m7.onnx"))
    assert len(str(error.value)) < 500 and ".tmp" not in str(error.value)
