"""Protobuf by hand, as converters write it: LSTM outputs left out, float16 inside, weights in int8, a nested If."""

from __future__ import annotations

import brought
import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

FLOAT = TensorProto.FLOAT


def weight(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 0.1


def left_out():
    """An LSTM of which only the last state is read: its first output has no name."""
    nodes = [
        oh.make_node("LSTM", ["x", "w", "r", "b"], ["", "last"], hidden_size=8),
        oh.make_node("Squeeze", ["last", "axis"], ["y"]),
    ]
    values = {"w": weight(1, 32, 4), "r": weight(1, 32, 8), "b": weight(1, 64), "axis": np.array([0])}
    return nodes, ["length", "batch", 4], ["batch", 8], values


def half_inside():
    """float16 between two casts, and no value_info that says so."""
    nodes = [
        oh.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        oh.make_node("MatMul", ["low", "w"], ["product"]),
        oh.make_node("Add", ["product", "b"], ["sum"]),
        oh.make_node("Cast", ["sum"], ["y"], to=FLOAT),
    ]
    values = {"w": weight(64, 64).astype(np.float16), "b": weight(64).astype(np.float16)}
    return nodes, ["batch", "length", 64], ["batch", "length", 64], values


def int8_weights():
    """Cast x scale."""
    nodes = [
        oh.make_node("Cast", ["w8"], ["wide"], to=FLOAT),
        oh.make_node("Mul", ["wide", "scale"], ["w"]),
        oh.make_node("MatMul", ["x", "w"], ["product"]),
        oh.make_node("Add", ["product", "b"], ["y"]),
    ]
    grid = np.random.default_rng(0).integers(-127, 127, (64, 64)).astype(np.int8)
    values = {"w8": grid, "scale": np.abs(weight(1, 64)), "b": weight(64)}
    return nodes, ["batch", "length", 64], ["batch", "length", 64], values


def branch(name, nodes, output):
    return oh.make_graph(nodes, name, [], [oh.make_tensor_value_info(output, FLOAT, None)])


def nested_if():
    """The checks of rank and size that TorchScript writes before a Squeeze: branches that are an Identity, one inside another."""
    squeezed = branch("then2", [oh.make_node("Squeeze", ["a", "axis"], ["t1"])], "t1")
    same = branch("else2", [oh.make_node("Identity", ["a"], ["t2"])], "t2")
    size = [
        oh.make_node("Shape", ["a"], ["shape"]),
        oh.make_node("Gather", ["shape", "zero"], ["rows"]),
        oh.make_node("Equal", ["rows", "one"], ["single"]),
        oh.make_node("If", ["single"], ["inner"], then_branch=squeezed, else_branch=same),
    ]
    other = branch("else1", [oh.make_node("Identity", ["a"], ["t3"])], "t3")
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Shape", ["x"], ["sizes"]),
        oh.make_node("Size", ["sizes"], ["rank"]),
        oh.make_node("Equal", ["rank", "two"], ["matrix"]),
        oh.make_node("If", ["matrix"], ["y"], then_branch=branch("then1", size, "inner"), else_branch=other),
    ]
    numbers = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "axis": np.array([0])}
    return nodes, ["batch", 4], ["batch", 4], {"w": weight(4, 4), **numbers}


GRAPHS = [left_out, half_inside, int8_weights, nested_if]


def saved(make, path, opset):
    nodes, taken, given, values = make()
    ports = [oh.make_tensor_value_info("x", FLOAT, taken)], [oh.make_tensor_value_info("y", FLOAT, given)]
    graph = oh.make_graph(nodes, "g", *ports, [numpy_helper.from_array(array, name) for name, array in values.items()])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8), path)
    sizes = [3 if isinstance(n, str) else n for n in taken]
    return {"x": weight(*sizes) * 10}


# A file with float16 inside rounds each value to it, and the artifact none: two steps of the type at the largest value.
def limit(make):
    return 2e-3 if make is half_inside else 1e-5


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("make", GRAPHS)
def test_it_is_built(make, opset, tmp_path):
    feeds = saved(make, tmp_path / "m.onnx", opset)
    wanted = brought.answers(tmp_path / "m.onnx", feeds, optimised=False)["y"]
    built = brought.build(tmp_path / "m.onnx", tmp_path / "out")
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["y"], wanted) < limit(make)
    got = brought.answers(built.graph(brought.FLOAT16), feeds)["y"]
    assert brought.off(got, wanted) < brought.LIMITS[brought.FLOAT16]


@pytest.mark.parametrize("make", GRAPHS)
def test_what_fuse_writes_runs(make, tmp_path):
    feeds = saved(make, tmp_path / "m.onnx", 20)
    wanted = brought.answers(tmp_path / "m.onnx", feeds, optimised=False)["y"]
    assert brought.command("fuse", tmp_path / "m.onnx", "-o", tmp_path / "f.onnx").code == 0
    assert brought.off(brought.answers(tmp_path / "f.onnx", feeds)["y"], wanted) < limit(make)
