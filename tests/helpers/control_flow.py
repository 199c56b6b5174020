"""Random graphs with graphs inside: Ifs in Ifs, Loops and Scans, whose branches hand values of the outside on."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPS = ("Identity", "Identity", "Relu", "Transposes", "Add", "MatMul", "Constant", "If", "If", "Loop", "Scan", "Condition")
DEPTH = 3


class _Maker:
    """Values are float32 [batch, 4]. `same` gives the values of an If's two branches the same names, as some exporters do."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.weights: list[onnx.TensorProto] = []
        self.count, self.same = 0, seed % 2 == 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def weight(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def body(self, nodes: list, values: list[str], flags: list[str], steps: int, depth: int) -> list[str]:
        """Append nodes; the values that they make."""
        made: list[str] = []
        for _ in range(steps):
            kind = self.random.choice(OPS)
            source = self.random.choice([*values, *made])
            if kind == "Condition":
                flags.append(self.condition(nodes, source))
            elif kind in ("If", "Loop", "Scan"):
                inside = [*values, *made]
                made.append(source if depth == DEPTH else getattr(self, kind.lower())(nodes, source, inside, flags, depth + 1))
            else:
                made.append(self.simple(nodes, kind, source))
        return made

    def simple(self, nodes: list, kind: str, source: str) -> str:
        out = self.name()
        if kind == "Transposes":
            between = self.name()
            nodes.append(helper.make_node("Transpose", [source], [between], perm=[1, 0]))
            nodes.append(helper.make_node("Transpose", [between], [out], perm=[1, 0]))
        elif kind == "Constant":
            held = self.name()
            nodes.append(helper.make_node("Constant", [], [held], value=numpy_helper.from_array(np.ones((1, 4), np.float32))))
            nodes.append(helper.make_node("Add", [source, held], [out]))
        elif kind in ("Add", "MatMul"):
            shape = (4, 4) if kind == "MatMul" else (1, 4)
            nodes.append(helper.make_node(kind, [source, self.weight(self.numbers.standard_normal(shape).astype("f"))], [out]))
        else:
            nodes.append(helper.make_node(kind, [source], [out]))
        return out

    def condition(self, nodes: list, source: str) -> str:
        """Of the data, or of the rank, which is known."""
        one, two, out = self.name(), self.name(), self.name()
        if self.random.random() < 0.5:
            nodes.append(helper.make_node("ReduceMax", [source], [one], keepdims=0))
            nodes.append(helper.make_node("Greater", [one, self.weight(np.float32(0.3))], [out]))
        else:
            nodes.append(helper.make_node("Shape", [source], [one]))
            nodes.append(helper.make_node("Size", [one], [two]))
            nodes.append(helper.make_node("Equal", [two, self.weight(np.array(self.random.choice([2, 3])))], [out]))
        return out

    def inner(self, values: list[str], flags: list[str], depth: int, inputs: list, extra: list[str]) -> onnx.GraphProto:
        nodes: list = []
        made = self.body(nodes, values, list(flags), self.random.randint(0, 3), depth)
        own = [name for node in nodes for name in node.output]
        outputs = []
        for flag in extra:
            nodes.append(helper.make_node("Identity", [flag], [name := self.name()]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))
        result = next((name for name in reversed(made) if name in own and self.random.random() < 0.6), "")
        if not result:
            nodes.append(helper.make_node("Identity", [self.random.choice([*values, *made])], [result := self.name()]))
        outputs.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, [None, 4]))
        return helper.make_graph(nodes, f"inner{self.count}", inputs, outputs)

    def if_(self, nodes: list, values: list[str], flags: list[str], depth: int) -> str:
        before = self.count
        first = self.inner(values, flags, depth, [], [])
        after, self.count = self.count, before if self.same else self.count
        second = self.inner(values, flags, depth, [], [])
        self.count = max(after, self.count)
        nodes.append(
            helper.make_node("If", [self.random.choice(flags)], [out := self.name()], then_branch=first, else_branch=second)
        )
        return out

    def loop(self, nodes: list, source: str, values: list[str], flags: list[str], depth: int) -> str:
        step, go, state = self.name(), self.name(), self.name()
        inputs = [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, TensorProto.FLOAT, [None, 4]),
        ]
        body = self.inner([*values, state], flags, depth, inputs, [go])
        nodes.append(helper.make_node("Loop", [self.weight(np.array(2)), "", source], [out := self.name()], body=body))
        return out

    def scan(self, nodes: list, source: str, values: list[str], flags: list[str], depth: int) -> str:
        state, row = self.name(), self.name()
        inputs = [
            helper.make_tensor_value_info(state, TensorProto.FLOAT, [None, 4]),
            helper.make_tensor_value_info(row, TensorProto.FLOAT, [1, 4]),
        ]
        body = self.inner([*values, state], flags, depth, inputs, [])
        given = [source, self.weight(np.ones((2, 1, 4), np.float32))]
        nodes.append(helper.make_node("Scan", given, [out := self.name()], body=body, num_scan_inputs=1))
        return out


setattr(_Maker, "if", lambda self, nodes, source, values, flags, depth: self.if_(nodes, values, flags, depth))


def random_graph(seed: int, opset: int = 20) -> onnx.ModelProto:
    """x [batch, 4] and a flag -> one or two outputs, the second perhaps a copy of the first."""
    maker, nodes = _Maker(seed), []
    made = maker.body(nodes, ["x"], ["flag"], maker.random.randint(3, 8), 0)
    last = made[-1] if made and made[-1] != "x" else maker.simple(nodes, "Relu", "x")
    outputs = [last]
    if seed % 3 == 0:
        nodes.append(helper.make_node("Identity", [last], ["copy"]))
        outputs.append("copy")
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in each] for each in (["x"], outputs)]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [*ports[0], flag], ports[1], maker.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = ((1, True), (3, False), (2, True))
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32), "flag": np.array(flag)} for rows, flag in sizes]
