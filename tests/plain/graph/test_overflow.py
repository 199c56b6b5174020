"""Whole numbers that overflow their type are the runtime's to compute: fusing gives what the file gave, whatever that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from bertc import cli

LOW, HIGH, TOP = -(2**31), 2**31 - 1, 2**63 - 1
I32, I64, F32 = np.int32, np.int64, np.float32
# (operator, attributes, what it reads): a result that does not fit its type.
OVER: dict[str, tuple[str, dict[str, Any], list[np.ndarray]]] = {
    "Add": ("Add", {}, [np.array([HIGH, 1], I32), np.array([1, 1], I32)]),
    "Add of int64": ("Add", {}, [np.array([TOP, 1], I64), np.array([1, 1], I64)]),
    "Sub": ("Sub", {}, [np.array([LOW, 1], I32), np.array([3, 1], I32)]),
    "Mul": ("Mul", {}, [np.array([HIGH, 1], I32), np.array([3, 1], I32)]),
    "Neg": ("Neg", {}, [np.array([LOW, 1], I32)]),
    "Abs": ("Abs", {}, [np.array([LOW, 1], I32)]),
    "Pow": ("Pow", {}, [np.array([10, 2], I32), np.array([12, 1], I32)]),
    "Pow of a fraction": ("Pow", {}, [np.array([HIGH, 2], I32), np.array([1.5, 1], F32)]),
    "ReduceSum": ("ReduceSum", {"keepdims": 1}, [np.array([HIGH, 1], I32)]),
    "ReduceProd": ("ReduceProd", {"keepdims": 1}, [np.array([HIGH, 2], I32)]),
    "ReduceSumSquare": ("ReduceSumSquare", {"keepdims": 1}, [np.array([2**16, 2], I32)]),
    "CumSum": ("CumSum", {}, [np.array([HIGH, 1], I32), np.array(0)]),
    "MatMul": ("MatMul", {}, [np.array([[HIGH, 2]], I32), np.array([[3, 1], [2, 2]], I32)]),
    "Cast of a number out of range": ("Cast", {"to": 6}, [np.array([3e9, 1], F32)]),
    "Cast of a number below": ("Cast", {"to": 6}, [np.array([-3e9, 1], F32)]),
    "Cast to uint8": ("Cast", {"to": 2}, [np.array([-1, 300], F32)]),
    "Cast to int64": ("Cast", {"to": 7}, [np.array([1e20, -1e20], F32)]),
}
FITS: dict[str, tuple[str, dict[str, Any], list[np.ndarray]]] = {
    "Add": ("Add", {}, [np.array([HIGH - 1, 1], I32), np.array([1, 1], I32)]),
    "Mul": ("Mul", {}, [np.array([2**15, 1], I32), np.array([2**15, 1], I32)]),
    "Neg": ("Neg", {}, [np.array([LOW + 1, 1], I32)]),
    "ReduceSum": ("ReduceSum", {"keepdims": 1}, [np.array([HIGH // 2, 1], I32)]),
    "Cast": ("Cast", {"to": 6}, [np.array([2147483520, -2147483648], F32)]),
    "Cast to fewer bits": ("Cast", {"to": 6}, [np.array([TOP, 1], I64)]),
    "floats": ("Mul", {}, [np.array([3e38, 1], F32), np.array([2, 1], F32)]),
    "nothing": ("Add", {}, [np.zeros([0, 2], I32), np.array([HIGH, 1], I32)]),
}


def write(path: Path, op: str, attributes: dict[str, Any], given: list[np.ndarray]) -> None:
    """y = Relu(x + float(op(constants)))."""
    names = [f"c{at}" for at in range(len(given))]
    nodes = [helper.make_node(op, names, ["made"], **attributes), helper.make_node("Cast", ["made"], ["f"], to=1)]
    nodes += [helper.make_node("Add", ["x", "f"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, 1, ["batch", 2])] for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in zip(names, given, strict=True)]
    made = helper.make_graph(nodes, "g", *ends, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def answer(path: Path) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options).run(None, {"x": np.zeros((1, 2), F32)})[0]


@pytest.mark.parametrize("name", OVER)
def test_an_overflow_is_left_to_the_runtime(name: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", *OVER[name])
    assert cli.run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]) == 0
    kept = {node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node}
    assert kept & {OVER[name][0], "FusedLinear"}  # a MatMul, for the runtime as well
    assert np.array_equal(answer(tmp_path / "m.onnx"), answer(tmp_path / "f.onnx"))


@pytest.mark.parametrize("name", FITS)
def test_what_fits_is_folded(name: str, tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", *FITS[name])
    if name == "nothing":
        assert cli.run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]) in (0, 2)
        return
    assert cli.run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]) == 0
    assert [node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node] == ["Add", "Relu"]
    assert np.array_equal(answer(tmp_path / "m.onnx"), answer(tmp_path / "f.onnx"))


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [I32, I64])
def test_a_division_that_would_end_the_process_is_refused(
    op: str, dtype: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = np.iinfo(dtype).min
    write(tmp_path / "m.onnx", op, {}, [np.array([least, 2], dtype), np.array([-1, 1], dtype)])
    assert cli.run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx")]) == 2
    assert f"({op}) divides {least} by -1" in capsys.readouterr().err
    write(tmp_path / "m.onnx", op, {}, [np.array([least + 1, 2], dtype), np.array([-1, 1], dtype)])
    assert cli.run(["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx"), "--force"]) == 0
