"""Files of .onnx that a stranger may have written: each kind that was found to break a command, made by code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import rule
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from bertc.core import SourceError
from bertc.graph import load_graph
from bertc.graph.inference_log import LOGGER

HUGE = 2_000_000_000
RANGE = {"start": np.array(0), "end": np.array(HUGE), "step": np.array(1)}


def model(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None, opset: int = 20) -> onnx.ModelProto:
    """x [batch, 4] -> y, with the nodes given or a Tanh."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    made = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes) or [helper.make_node("Tanh", ["x"], ["y"], name="t")], "g", infos[:1], infos[1:], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(op: str, reads: str, makes: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), makes.split(), name=f"n_{makes.split()[0]}", **attributes)


def weighted(change: Callable[[onnx.TensorProto], None]) -> onnx.ModelProto:
    made = model(node("MatMul", "x w", "y"), weights={"w": np.eye(4, dtype=np.float32)})
    change(made.graph.initializer[0])
    return made


def sized(*sizes: int) -> onnx.ModelProto:
    def change(tensor: onnx.TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(sizes)

    return weighted(change)


def bomb(depth: int) -> onnx.ModelProto:
    made = model(helper.make_node("f0", ["x"], ["y"], domain="d"))
    made.opset_import.append(helper.make_opsetid("d", 1))
    for at in range(depth):
        op, domain = (f"f{at + 1}", "d") if at + 1 < depth else ("Tanh", "")
        calls = [helper.make_node(op, ["a"], ["b"], domain=domain), helper.make_node(op, ["b"], ["c"], domain=domain)]
        made.functions.append(helper.make_function("d", f"f{at}", ["a"], ["c"], calls, made.opset_import))
    return made


def recursive() -> onnx.ModelProto:
    made = bomb(2)
    made.functions[1].node[0].op_type, made.functions[1].node[0].domain = "f0", "d"
    return made


def from_constants(op: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    nodes = [node(op, " ".join(weights), "big"), node("ReduceSum", "big", "sum", keepdims=0)]
    return model(*nodes, node("Cast", "sum", "number", to=TensorProto.FLOAT), node("Add", "x number", "y"), weights=weights)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = model()
    change(made)
    return made


def sequence(made: onnx.ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))


def loop(condition: str, decides: onnx.NodeProto) -> onnx.ModelProto:
    """2^63 - 1 rounds at most, as torch writes `while`."""
    number, truth = (helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", TensorProto.BOOL)))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "w")]
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    body = helper.make_graph([decides, node("Tanh", "v", "w")], "b", [number, truth, values[0]], [on, values[1]])
    constants = {"most": np.array(2**63 - 1), "true": np.array(True), "five": np.array(5)}
    return model(helper.make_node("Loop", ["most", condition, "x"], ["y"], name="loop", body=body), weights=constants)


def no_condition() -> onnx.ModelProto:
    made = loop("true", node("Less", "i five", "on"))
    made.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros((5, 0), np.int64), "five"))
    return made


def typed_attribute(kind: int) -> onnx.ModelProto:
    made = model(node("Cast", "x", "y", to=TensorProto.FLOAT))
    made.graph.node[0].attribute[0].type = kind
    return made


def imports(*entries: tuple[str, int]) -> onnx.ModelProto:
    made = model()
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(*entry) for entry in entries)
    return made


def said_in_gbk() -> onnx.ModelProto:
    made = model()
    for message in (made, made.graph, made.graph.node[0]):
        message.doc_string = "####"
    made.producer_name = made.graph.name = made.graph.node[0].name = "####"
    entry = made.metadata_props.add()
    entry.key = entry.value = "####"
    return onnx.ModelProto.FromString(made.SerializeToString().replace(b"####", "\u4f60\u597d".encode("gbk")))


def fixed_sizes() -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 12, 512, 64]) for name in "xy"]
    nodes = [node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("MatMul", "x t", "scores"), node("MatMul", "scores x", "y")]
    return helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )


def in_four_bits() -> onnx.ModelProto:
    made = model(node("Cast", "q", "c", to=TensorProto.FLOAT), node("Add", "x c", "y"), opset=21)
    packed = made.graph.initializer.add(name="q", data_type=TensorProto.INT4, dims=[4])
    packed.int32_data.extend([0x21, 0x43])
    return made


ACCEPTED: dict[str, Callable[[], onnx.ModelProto]] = {
    "a while loop": lambda: loop("true", node("Less", "i five", "on")),
    "a domain twice": lambda: imports(("", 17), ("ai.onnx", 17), ("com.microsoft", 1), ("com.microsoft", 1)),
    "a domain of version 0": lambda: imports(("", 17), ("com.microsoft", 0)),
    "texts in another encoding": said_in_gbk,
    "scores of 200 million numbers": fixed_sizes,
    "4 bits in typed data": in_four_bits,
}
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a weight of 4 PB": (lambda: sized(10**6, 10**9), "'w'"),
    "a negative size": (lambda: sized(-4, -4), "'w'"),
    "no numbers left": (lambda: sized(0, 4), "'w'"),
    "an undefined type": (lambda: weighted(lambda t: setattr(t, "data_type", 99)), "99"),
    "a value that nothing makes": (lambda: model(node("Add", "x nowhere", "y")), "'nowhere'"),
    "a cycle": (lambda: model(node("Add", "x b", "a"), node("Tanh", "a", "b"), node("Tanh", "b", "y")), "cycle"),
    "made twice": (lambda: model(node("Tanh", "x", "y"), node("Exp", "x", "y")), "twice"),
    "functions of 2^27 nodes": (lambda: bomb(27), "expand"),
    "a function that calls itself": (recursive, "calls itself"),
    "opset 99": (lambda: model(opset=99), "99"),
    "no opset": (lambda: changed(lambda m: m.ClearField("opset_import")), "opset_import"),
    "an output of nothing": (lambda: changed(lambda m: setattr(m.graph.output[0], "name", "z")), "'z'"),
    "a sequence": (lambda: changed(sequence), "sequence"),
    "a fill of billions": (lambda: from_constants("ConstantOfShape", {"s": np.array([HUGE])}), "ConstantOfShape"),
    "a range of billions": (lambda: from_constants("Range", RANGE), "Range"),
    "an expansion": (lambda: from_constants("Expand", {"v": np.ones(1, np.float32), "s": np.array([HUGE])}), "Expand"),
    "a loop without end": (lambda: loop("true", node("Identity", "c", "on")), "Loop"),
    "a loop that asks nobody": (lambda: loop("", node("Less", "i five", "on")), "Loop"),
    "a condition without a value": (no_condition, "'on'"),
    "an attribute of no type": (lambda: typed_attribute(0), "'to'"),
    "an attribute of another type": (lambda: typed_attribute(onnx.AttributeProto.STRINGS), "'to'"),
    "a tiling": (lambda: from_constants("Tile", {"v": np.ones(1, np.float32), "s": np.array([HUGE])}), "Tile"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_with_its_reason(kind: str, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    path, out = tmp_path / "hostile.onnx", tmp_path / "out" / "fused.onnx"
    out.parent.mkdir()
    path.write_bytes(make().SerializeToString())
    assert rule.obey(["fuse", str(path), "-o", str(out), "--no-prove"], path, out) == 2
    with pytest.raises(SourceError, match=said):
        load_graph(path)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_onnx_runtime_loads_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "unusual.onnx"
    path.write_bytes(ACCEPTED[kind]().SerializeToString())
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    graph = load_graph(path)
    assert [spec.name for spec in graph.outputs] == ["y"]
    if kind.startswith("texts"):
        ir.to_proto(graph.model).SerializeToString()


def test_what_onnx_cannot_infer_is_said_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The output is declared with two dimensions and has three."""
    path = tmp_path / "m.onnx"
    path.write_bytes(sized(1, 4, 4).SerializeToString())
    assert rule.obey(["fuse", str(path), "-o", str(tmp_path / "fused.onnx")], path) == 0
    (said,) = [record for record in caplog.records if record.name == LOGGER]
    assert "differ in rank" in said.getMessage() and not said.exc_info


@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_byte_changed_or_the_rest_cut_off(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: bool) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    path, out = folder / "hostile.onnx", folder / "out" / "fused.onnx"
    out.parent.mkdir()
    data = bytearray(weighted(lambda _: None).SerializeToString())
    at %= len(data)
    data[at] = byte
    path.write_bytes(data[:at] if cut else data)
    rule.obey(["fuse", str(path), "-o", str(out), "--no-prove"], path, out)
