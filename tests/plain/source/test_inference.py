"""Types at the door, and files that ONNX Runtime cannot run as they are."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bertc.cli._main import run
from bertc.core.errors import SourceError
from bertc.report import inspect
from bertc.source import FileRunner, infer_types, settle_sizes
from bertc.source import onnx_file as onnx_source
from bertc.source.opening import open_source

HEAD = '<ir_version: 10, opset_import: ["" : 20{}]>\n'
LSTM = """g (float[length, batch, 4] x) => (float[batch, 8] y) <float[1,{gates},4] w, float[1,{gates},8] r> {{
  z = Constant <value_ints = [0]> () {made} = {kind} <hidden_size = 8> (x, w, r) y = Squeeze (h, z) }}"""
FORMS = {
    "first left out": ("LSTM", 32, ", h"),
    "two left out": ("LSTM", 32, ",, h"),
    "named, but not read": ("LSTM", 32, "all, h, cell"),
    "GRU": ("GRU", 24, ", h"),
    "RNN": ("RNN", 8, "all, h"),
}


def saved(path: Path, text: str, domains: str = "", **weights: tuple[int, ...]) -> Path:
    model = onnx.parser.parse_model(HEAD.format(domains) + text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert not model.graph.value_info or {info.name for info in model.graph.value_info} == set(weights)
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("target", ["null=fp16", "null=bf16", "null=fp32"])
@pytest.mark.parametrize("form", FORMS)
def test_left_out_outputs_survive_every_type(form: str, target: str, tmp_path: Path) -> None:
    kind, gates, made = FORMS[form]
    text = LSTM.format(gates=gates, kind=kind, made=made)
    path = saved(tmp_path / "m.onnx", text, w=(1, gates, 4), r=(1, gates, 8))
    for fuse in ("--fuse", "--no-fuse"):
        assert run(["build", str(path), "--target", target, fuse, "-o", str(tmp_path / "out"), "--force"]) == 0


def test_every_value_has_a_type(tmp_path: Path) -> None:
    """Operators of com.microsoft too, inside branches too."""
    text = """g (float[batch, length, 8] x, bool flag) => (float[batch, length, 8] y) {
      a = com.microsoft.Trilu (x) c = Tanh (a)
      y = If (flag) <then_branch = t () => (float[batch, length, 8] p) { m = Neg (c) p = Identity (m) },
                     else_branch = e () => (float[batch, length, 8] q) { q = Identity (c) }> }"""
    path = saved(tmp_path / "m.onnx", text, ', "com.microsoft" : 1')
    graph, _, notes = onnx_source.read_onnx_file(path)
    assert all("kept as they are" in note for note in notes)
    assert all(v.dtype == ir.DataType.FLOAT for node in graph.model.graph.all_nodes() for v in node.outputs)
    assert {str(v.name): str(v.shape) for v in graph.model.graph.node(1).outputs} == {"c": "[batch,length,8]"}
    assert "unknown" not in str(inspect.inspect_path(path)["precision_by_op"])


def test_what_no_one_can_type_is_said() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "ai.onnx.ml" : 3, "other" : 1]> '
        "g (float[N] x) => (float[N] y) { a = other.Thing (x) y = Neg (a) }"
    )
    from bertc.graph import Graph

    (note,) = infer_types(Graph(model))
    assert note.startswith("no type can be inferred for 1 value,") and "'a'" in note


def bfloat16(name: str, *shape: int) -> onnx.TensorProto:
    array = np.random.default_rng(len(name) + sum(shape)).standard_normal(shape).astype(ml_dtypes.bfloat16)
    return helper.make_tensor(name, TensorProto.BFLOAT16, shape, array.tobytes(), raw=True)


def bf16_file(path: Path) -> tuple[Path, list[np.ndarray]]:
    model = onnx.parser.parse_model(
        HEAD.format("")
        + """g (float[batch, 16] x) => (float[batch, 4] y) {
        xb = Cast <to = 16> (x) a = MatMul (xb, w) b = Relu (a) c = MatMul (b, v) y = Cast <to = 1> (c) }"""
    )
    weights = [bfloat16("w", 16, 8), bfloat16("v", 8, 4)]
    model.graph.initializer.extend(weights)
    onnx.save(model, path)
    return path, [onnx.numpy_helper.to_array(each).astype(np.float32) for each in weights]


def test_bfloat16_runs_where_there_is_no_kernel(tmp_path: Path) -> None:
    path, (w, v) = bf16_file(tmp_path / "m.onnx")
    runner = FileRunner(path)
    assert "MatMul" in runner.note and "float32" in runner.note
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    wanted = rounded(np.maximum(rounded(rounded(x) @ w), 0) @ v)
    got = runner({"x": x})["y"]
    assert np.abs(got - wanted).max() <= 2**-8 * np.abs(wanted).max(), "a sum on the border of two numbers may round either way"
    assert not np.array_equal(got, np.maximum(x @ w, 0) @ v), "it rounds"
    assert any("bfloat16" in note for note in open_source(str(path)).notes)
    assert run(["build", str(path), "--target", "null=bf16", "-o", str(tmp_path / "out")]) == 0
    assert run(["fuse", str(path), "-o", str(tmp_path / "fused.onnx")]) == 0


def test_what_does_not_load_for_another_reason_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", "g (float[N] x) => (float[N] y) { y = com.microsoft.NoSuch (x) }", ', "com.microsoft" : 1')
    with pytest.raises(SourceError, match="does not load in ONNX Runtime"):
        FileRunner(path).open()


@pytest.mark.parametrize("inside", [False, True])
def test_small_external_tensors_do_not_stop_the_conversion(inside: bool, tmp_path: Path) -> None:
    """Exporters that write all tensors out, shapes and axes too; the converter and inference read those."""
    text = """g (float[batch, length, 6] x) => (float[batch, length, 6] y) <float[6,6] w, int64[4] s, int64[1] f, int64[1] one> {
      m = MatMul (x, w) h = Reshape (m, s) t = Transpose <perm = [0, 2, 1, 3]> (h)
      p = ReduceSum <keepdims = 0> (t, one) u = Unsqueeze (p, one) a = Add (t, u) b = Transpose <perm = [0, 2, 1, 3]> (a)
      q = Concat <axis = 0> (k, f) y = Reshape (b, q) }"""
    model = onnx.parser.parse_model(
        HEAD.format("").replace("20", "13") + text.replace("q = Concat", "k = Slice (s, z, two) q = Concat")
    )
    del model.graph.value_info[:]
    arrays = {"w": np.eye(6, dtype=np.float32), "s": np.array([0, 0, 2, 3]), "f": np.array([6])}
    arrays |= {"one": np.array([1]), "z": np.array([0]), "two": np.array([2])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    kind = {"location": "all.bin"} if inside else {"all_tensors_to_one_file": False}
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, **kind)
    graph, dims, _ = onnx_source.read_onnx_file(tmp_path / "m.onnx")
    assert len(onnx_source.data_files(tmp_path / "m.onnx", graph)) == (2 if inside else 7), "what was read in is still hashed"
    settle_sizes(graph, dims, FileRunner(tmp_path / "m.onnx"))
    build = ["build", str(tmp_path / "m.onnx"), "--target", "onnxruntime=fp32", "-o", str(tmp_path / "out")]
    assert run(build) == 0
    assert run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "fused.onnx")]) == 0
    assert onnx.load(tmp_path / "fused.onnx").opset_import[0].version == 20
