"""What `encoder_files` writes nodes and weights with, in the form of the opset and the storage that were chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from random_encoders import Encoder

TENSORS = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}
AXES_AS_INPUT = {"Unsqueeze": 13, "Squeeze": 13, "ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18}


class Writer:
    """Nodes and weights under way; `inside` collects nodes for a branch or a body, which see what is outside."""

    def __init__(self, choices: Encoder) -> None:
        self.choices, self.rng = choices, np.random.default_rng(choices.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def op(self, kind: str, *given: str, **attributes: object) -> str:
        out = self.name(kind)
        self.nodes.append(helper.make_node(kind, list(given), [out], name=f"node_{out}", **attributes))
        return out

    def along(self, kind: str, x: str, *axes: int, **attributes: object) -> str:
        """An operator whose axes became an input at some opset."""
        if self.choices.opset >= AXES_AS_INPUT[kind]:
            return self.op(kind, x, self.constant(np.array(axes, np.int64)), **attributes)
        return self.op(kind, x, axes=list(axes), **attributes)

    def constant(self, value: object, dtype: type = np.float32) -> str:
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype)
        name = self.name("c")
        self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def cast(self, x: str, kind: str) -> str:
        return self.op("Cast", x, to=TENSORS[kind])

    def weight(self, *dims: int, around: float = 0.0, times: float = 1.0) -> str:
        """A float32 value of a matrix as it is stored; vectors are floats, or halves."""
        spread = 0.3 if len(dims) == 1 else 1.2 / np.sqrt(dims[0])
        array = ((around + spread * self.rng.standard_normal(dims)) * times).astype(np.float32)
        storage = self.choices.storage
        if storage == "half":
            return self.cast(self.constant(array.astype(np.float16)), "float32")
        if storage == "float" or len(dims) == 1:
            return self.constant(array)
        steps = (np.abs(array).max(0) / 127).astype(np.float32)
        whole = np.clip(np.round(array / steps), -127, 127).astype(np.int8)
        if storage == "int8 cast":
            return self.op("Mul", self.cast(self.constant(whole), "float32"), self.constant(steps))
        zero = np.zeros(len(steps), np.int8)
        if storage == "uint8 dequantize":
            whole, zero = (whole.astype(np.int16) + 128).astype(np.uint8), np.full(len(steps), 128, np.uint8)
        return self.op("DequantizeLinear", self.constant(whole), self.constant(steps), self.constant(zero), axis=1)

    @contextlib.contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        outer, self.nodes = self.nodes, []
        yield self.nodes
        self.nodes = outer

    def either(self, condition: str, first: Callable[[], str], second: Callable[[], str]) -> str:
        """An If over two functions that append nodes and give the name of a float [batch, length, width]."""
        branches = []
        for branch in (first, second):
            with self.inside() as nodes:
                out = self.op("Identity", branch())
            value = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
            branches.append(helper.make_graph(nodes, self.name("branch"), [], [value]))
        return self.op("If", condition, then_branch=branches[0], else_branch=branches[1])

    def repeat(self, times: int, x: str, body: Callable[[str], str]) -> str:
        """A Loop that hands a float [batch, length, width] on."""
        step, going, before, still, after = (self.name(n) for n in ("step", "going", "before", "still", "after"))
        with self.inside() as nodes:
            nodes.append(helper.make_node("Identity", [going], [still]))
            nodes.append(helper.make_node("Identity", [body(before)], [after]))
        kinds = [(step, TensorProto.INT64, []), (going, TensorProto.BOOL, []), (before, TensorProto.FLOAT, [None, None, None])]
        made = [(still, TensorProto.BOOL, []), (after, TensorProto.FLOAT, [None, None, None])]
        inputs, outputs = ([helper.make_tensor_value_info(*each) for each in side] for side in (kinds, made))
        graph = helper.make_graph(nodes, self.name("body"), inputs, outputs)
        return self.op("Loop", self.constant(times, np.int64), self.constant(True, np.bool_), x, body=graph)


def size(w: Writer, dim: str) -> str:
    """A dimension of the ids as int64 [1]."""
    at = 0 if dim == "batch" else 1
    return w.op("Slice", w.op("Shape", "input_ids"), w.constant(np.array([at])), w.constant(np.array([at + 1])))


def square(w: Writer) -> str:
    length = size(w, "length")
    return w.op("Concat", size(w, "batch"), w.constant(np.array([1])), length, length, axis=0)


def linear(w: Writer, x: str, rows: int, columns: int, times: float = 1.0) -> str:
    """x [batch, length, rows] -> [batch, length, columns]."""
    form, before = w.choices.linear, w.choices.bias == "before"
    weight = w.weight(rows, columns, times=times) if form != "Gemm transB" else w.weight(columns, rows, times=times)
    bias = "" if w.choices.bias == "none" else w.weight(columns, times=times)
    if form in ("Gemm", "Gemm transB"):
        flat = w.op("Reshape", x, w.constant(np.array([-1, rows])))
        given = (flat, weight, bias) if bias else (flat, weight)
        made = w.op("Gemm", *given, **({"transB": 1} if form == "Gemm transB" else {}))
        sizes = w.op("Slice", w.op("Shape", x), w.constant(np.array([0])), w.constant(np.array([2])))
        return w.op("Reshape", made, w.op("Concat", sizes, w.constant(np.array([columns])), axis=0))
    if form == "Einsum":
        made = w.op("Einsum", x, weight, equation="bld,de->ble")
    elif form == "Transpose":
        turned = w.weight(columns, rows, times=times)
        made = w.op("MatMul", x, w.op("Transpose", turned, perm=[1, 0]))
    else:
        made = w.op("MatMul", x, weight)
    if not bias:
        return made
    return w.op("Add", bias, made) if before else w.op("Add", made, bias)


def norm(w: Writer, x: str) -> str:
    c, width = w.choices, w.choices.width
    gamma, beta = w.weight(width, around=1.0), w.weight(width)
    if c.norm_form == "operator":
        return w.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=c.epsilon)
    rms = c.norm_form.endswith("rms")
    moved = x if rms else w.op("Sub", x, w.along("ReduceMean", x, -1, keepdims=1))
    squared = w.op("Mul", moved, moved) if c.norm_form == "mul" else w.op("Pow", moved, w.constant(2.0))
    spread = w.op("Sqrt", w.op("Add", w.along("ReduceMean", squared, -1, keepdims=1), w.constant(c.epsilon)))
    scaled = w.op("Mul", w.op("Div", moved, spread), gamma)
    return scaled if rms else w.op("Add", scaled, beta)
