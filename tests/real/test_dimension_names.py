"""Dimensions as tf2onnx, paddle2onnx and Keras name them or not: tied where the graph demands it, fixed where it says so."""

from __future__ import annotations

import brought
import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import TensorProto, numpy_helper

WIDTH, HEADS, WORDS = 32, 4, 120
TOOLS = {
    "tf2onnx": (["unk__616", "unk__617"], ["unk__618", "unk__619"]),
    "paddle2onnx": (["DynamicDimension.0", "DynamicDimension.1"], ["DynamicDimension.2", "DynamicDimension.3"]),
    "keras": (["N", 32], ["N", 32]),
    "question marks": (["?", "?"], ["?", "?"]),
    "half named": ([None, "seq"], [None, "seq"]),
    "one row": ([1, "seq"], [1, "seq"]),
    "fixed": ([1, 32], [1, 32]),
}


class Written:
    """An encoder of one layer as paddle2onnx leaves it: opset 11, int32 ids, the mask made of `ids == 0`, all spelled out."""

    def __init__(self) -> None:
        self.nodes, self.values, self.rng = [], [], np.random.default_rng(0)

    def constant(self, array):
        name = f"c{len(self.values)}"
        self.values.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def number(self, value):
        return self.constant(np.float32(value))

    def weight(self, *shape):
        return self.constant((self.rng.standard_normal(shape) * 0.2).astype(np.float32))

    def op(self, kind, *inputs, **attributes):
        name = f"p2o.{kind}.{len(self.nodes)}"
        self.nodes.append(oh.make_node(kind, list(inputs), [name], name=f"n.{name}", **attributes))
        return name

    def linear(self, x, n, m):
        return self.op("Add", self.op("MatMul", x, self.weight(n, m)), self.weight(m))

    def norm(self, x):
        d = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1], keepdims=1))
        variance = self.op("ReduceMean", self.op("Mul", d, d), axes=[-1], keepdims=1)
        y = self.op("Div", d, self.op("Sqrt", self.op("Add", variance, self.number(1e-5))))
        return self.op("Add", self.op("Mul", y, self.weight(WIDTH)), self.weight(WIDTH))

    def heads(self, x):
        shape = self.constant(np.array([0, 0, HEADS, WIDTH // HEADS]))
        return self.op("Transpose", self.op("Reshape", self.linear(x, WIDTH, WIDTH), shape), perm=[0, 2, 1, 3])

    def attention(self, x, mask):
        q, k, v = self.heads(x), self.heads(x), self.heads(x)
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Add", self.op("Mul", scores, self.number((WIDTH // HEADS) ** -0.5)), mask)
        y = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=3), v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", y, self.constant(np.array([0, 0, WIDTH]))), WIDTH, WIDTH)

    def embeddings(self):
        length = self.op("Gather", self.op("Shape", "input_ids"), self.constant(1), axis=0)
        positions = self.op("Range", self.constant(0), length, self.constant(1))
        words = self.op("Gather", self.weight(WORDS, WIDTH), "input_ids")
        summed = self.op("Add", words, self.op("Gather", self.weight(64, WIDTH), positions))
        return self.norm(self.op("Add", summed, self.op("Gather", self.weight(2, WIDTH), "token_type_ids")))

    def encoder(self):
        empty = self.op("Cast", self.op("Equal", "input_ids", self.constant(np.int32(0))), to=TensorProto.FLOAT)
        mask = self.op("Unsqueeze", self.op("Mul", empty, self.number(-10000.0)), axes=[1, 2])
        x = self.embeddings()
        x = self.norm(self.op("Add", x, self.attention(x, mask)))
        first = [self.constant(np.array([n])) for n in (0, 1, 1)]
        return self.linear(self.op("Squeeze", self.op("Slice", x, *first), axes=[1]), WIDTH, 3)


def saved(path, dims):
    made = Written()
    output = made.encoder()
    inputs = zip(("input_ids", "token_type_ids"), dims, strict=True)
    graph = oh.make_graph(
        made.nodes, "other tool", [oh.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in inputs],
        [oh.make_tensor_value_info(output, TensorProto.FLOAT, [dims[0][0], 3])], made.values,
    )  # fmt: skip
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 11)], ir_version=7), path)
    return output


@pytest.mark.parametrize("tool", TOOLS)
def test_it_is_built(tool, tmp_path):
    output = saved(tmp_path / "m.onnx", TOOLS[tool])
    rows, length = (n if isinstance(n, int) else size for n, size in zip(TOOLS[tool][0], (3, 9), strict=True))
    rng = np.random.default_rng(1)
    ids = rng.integers(1, WORDS, (rows, length)).astype(np.int32)
    ids[-1, length // 2 :] = 0
    feeds = {"input_ids": ids, "token_type_ids": rng.integers(0, 2, ids.shape).astype(np.int32)}
    wanted = brought.answers(tmp_path / "m.onnx", feeds, optimised=False)[output]
    built = brought.build(tmp_path / "m.onnx", tmp_path / "out")
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)[output], wanted) < 1e-5
    assert brought.off(brought.answers(built.graph(brought.FLOAT16), feeds)[output], wanted) < brought.LIMITS[brought.FLOAT16]
    assert built.fusions()["sdpa"] == 1
