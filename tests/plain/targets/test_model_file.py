"""What a session is given is what was hashed: a file that is swapped between the check and the use is never used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bertc import targets
from bertc.artifact import Artifact
from bertc.core import ArtifactError, BertcError, hash_file
from bertc.targets import onnxruntime as cpu
from bertc.targets._model_file import ModelFile, read_model
from bertc.targets._onnxruntime_cuda import session as cuda
from bertc.targets._onnxruntime_cuda import tensorrt_session as tensorrt

WEIGHTS = "graph.onnx.data"
FEEDS = {"x": np.ones(2, np.float32)}
TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: None, TensorProto.INT8: np.int8}


def write(folder: Path, value: int, beside: bool, dtype: int = TensorProto.FLOAT) -> dict[str, Any]:
    """An artifact's files, y = x + Sum(w) of a w [64,64] of that value, and what a target reads of its manifest."""
    folder.mkdir(exist_ok=True)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    w = onnx.TensorProto(name="w", data_type=dtype, dims=[64, 64], raw_data=np.full([64, 64], value).astype(kind).tobytes())
    if beside:
        (folder / WEIGHTS).write_bytes(b"beside" + w.raw_data)
        for key, each in (("location", WEIGHTS), ("offset", "6"), ("length", str(len(w.raw_data)))):
            w.external_data.add(key=key, value=each)
        w.data_location = TensorProto.EXTERNAL
        w.ClearField("raw_data")
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"])] for name in "xy"]
    opset = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", *ends, [w]), opset_imports=opset, ir_version=10), folder / "graph.onnx"
    )
    shutil.copy(folder / "graph.onnx", folder / "model.onnx")
    return {
        "files": {file.name: {"sha256": hash_file(file), "bytes": file.stat().st_size} for file in folder.iterdir()},
        "inputs": [{"name": "x", "dtype": "float32", "dims": ["batch"]}],
        "outputs": [{"name": "y", "dtype": "float32", "dims": ["batch"]}],
        "profiles": [],
        "precision": {"mode": "fp32"},
        "engine": {"session": {}},
    }


def save(folder: Path, manifest: Any) -> Any:
    return cpu.save_mapped(folder, manifest, folder.with_name("saved.onnx"))


WAYS: dict[str, Callable[[Path, Any], Any]] = {
    "null": targets.get("null").load,
    "onnxruntime": targets.get("onnxruntime").load,
    "save_mapped": save,
}


@pytest.mark.parametrize("beside", [False, True], ids=["embedded", "beside"])
@pytest.mark.parametrize("way", WAYS)
def test_a_file_swapped_behind_its_check_is_not_used(
    way: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file becomes another model's, with another answer, as soon as it has been read once."""
    manifest, other = write(tmp_path / "art", 1, beside), tmp_path / "other"
    write(other, 2, beside)
    whole, swapped = Path.read_bytes, set()

    def read_and_swap(path: Path) -> bytes:
        data = whole(path)
        if path.parent == tmp_path / "art":
            shutil.copy(other / path.name, path)
            swapped.add(path.name)
        return data

    monkeypatch.setattr(Path, "read_bytes", read_and_swap)
    runner = WAYS[way](tmp_path / "art", manifest)
    assert runner.run(FEEDS)["y"].tolist() == [4097.0, 4097.0]
    assert swapped == {"graph.onnx" if way == "null" else "model.onnx", *([WEIGHTS] if beside else [])}
    for name in swapped:  # and all of them are the other model's by now: that is refused
        with pytest.raises(ArtifactError, match=r"differs from the file that was built"):
            WAYS[way](tmp_path / "art", manifest)
        shutil.copy(other / name, tmp_path / "art" / name)


@pytest.mark.parametrize("name", ["graph.onnx", WEIGHTS])
def test_the_graph_of_an_artifact_is_the_one_that_was_hashed(name: str, tmp_path: Path) -> None:
    manifest = write(tmp_path / "art", 1, beside=True)
    graph = Artifact(tmp_path / "art", manifest).graph()
    write(tmp_path / "other", 2, beside=True)
    shutil.copy(tmp_path / "other" / WEIGHTS, tmp_path / "art" / name)
    found = graph.model.graph.initializers["w"].const_value
    assert found is not None and found.numpy().max() == 1
    with pytest.raises(ArtifactError, match="differs"):
        Artifact(tmp_path / "art", manifest).graph()


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_too_large_for_a_file_in_memory_are_given_one_by_one(
    dtype: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertc.targets._model_file.EMBEDDED", 1)
    manifest = write(tmp_path / "art", 3, beside=True, dtype=dtype)
    assert cpu.load(tmp_path / "art", manifest).run(FEEDS)["y"].tolist() == [3 * 4096 + 1.0] * 2


@pytest.mark.parametrize("location", ["/etc/hostname", "../w", "model.onnx", "", "\0"])
def test_a_file_that_was_not_read_is_not_looked_for(location: str, tmp_path: Path) -> None:
    """The hash of the graph is right, and the graph names another file: a session would look for it where it runs."""
    write(tmp_path / "art", 1, beside=True)
    model = onnx.load(tmp_path / "art" / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    read = ModelFile(tmp_path / "art" / "model.onnx", model.SerializeToString(), {WEIGHTS: b""})
    with pytest.raises(ArtifactError, match=r"lies in .*, which is no file of this artifact"):
        read.configure(SimpleNamespace())


def test_a_file_of_one_s_own_is_opened_by_its_path(tmp_path: Path) -> None:
    manifest = write(tmp_path / "art", 1, beside=True)
    path = tmp_path / "art" / "model.onnx"
    for runner in (cpu.OnnxRuntimeRunner(path, manifest), cpu.open_file(path, manifest)):
        assert runner.run(FEEDS)["y"].tolist() == [4097.0, 4097.0]


def test_weights_that_end_too_early_are_told(tmp_path: Path) -> None:
    manifest = write(tmp_path / "art", 1, beside=True)
    read = read_model(tmp_path / "art", manifest, "model.onnx")
    short = ModelFile(read.path, read.data, {WEIGHTS: read.beside[WEIGHTS][:-1]})
    with pytest.raises(BertcError, match=r"graph.onnx.data has 16389 bytes, w ends at 16390"):
        short.configure(SimpleNamespace())


class Asked(Exception):
    pass


@pytest.mark.parametrize("beside", [False, True], ids=["embedded", "beside"])
@pytest.mark.parametrize("opened", [cuda.open_cuda_session, tensorrt.open_tensorrt_session], ids=["cuda", "tensorrt"])
def test_sessions_on_a_gpu_are_given_bytes(opened: Any, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu stood in by ONNX Runtime of the CPU, which takes the same bytes and options."""
    import onnxruntime as ort

    manifest = write(tmp_path / "art", 1, beside)
    read = read_model(tmp_path / "art", manifest, "model.onnx")
    shutil.rmtree(tmp_path / "art")

    def ask(model: Any, options: Any, **more: Any) -> Any:
        raise Asked(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, FEEDS)[0].tolist())

    fake = SimpleNamespace(**{name: getattr(ort, name) for name in ("SessionOptions", "GraphOptimizationLevel", "OrtValue")})
    fake.InferenceSession, fake.get_available_providers = ask, lambda: [cuda.PROVIDER]
    for module in (cuda, tensorrt):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: fake)
    given = (
        cuda.SESSION
        if opened is cuda.open_cuda_session
        else [("TensorrtExecutionProvider", {"trt_engine_cache_path": str(tmp_path)})]
    )
    with pytest.raises(BertcError) as caught:
        opened(read, given)
    assert isinstance(caught.value.__cause__, Asked) and caught.value.__cause__.args[0] == [4097.0, 4097.0]
