"""Graphs of any number of nodes, with next to no weights: what a pass costs for each node shows, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8
Nodes = list[onnx.NodeProto]
Weights = dict[str, np.ndarray]
Row = tuple[Any, ...]  # operator, names that it reads, name that it makes, attributes


def chain(count: int) -> tuple[Nodes, Weights]:
    """One node behind the other, nothing to fuse."""
    nodes, last = [], "x"
    for at in range(count):
        op, more = (("Tanh", ()), ("Add", ("shift",)), ("Mul", ("scale",)))[at % 3]
        nodes.append(helper.make_node(op, [last, *more], [f"v{at}"], name=f"n{at}"))
        last = f"v{at}"
    return nodes, {"shift": np.full(WIDTH, 0.25, np.float32), "scale": np.full(WIDTH, 1.5, np.float32)}


def blocks(count: int) -> tuple[Nodes, Weights]:
    """Feed-forward blocks of one linear layer, a GELU and a LayerNorm in pieces: all of it fuses."""
    rng = np.random.default_rng(0)
    weights: Weights = {
        "root": np.array(np.sqrt(2), np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "two": np.array(2, np.float32),
        "epsilon": np.array(1e-5, np.float32),
        "gamma": np.ones(WIDTH, np.float32),
        "beta": np.zeros(WIDTH, np.float32),
        "weight": (rng.standard_normal((WIDTH, WIDTH)) / 3).astype(np.float32),
        "bias": rng.standard_normal(WIDTH).astype(np.float32),
    }
    return repeated(BLOCK, count, weights), weights


def repeated(block: Sequence[Row], count: int, weights: Weights) -> Nodes:
    """The rows of a block, again and again up to `count` nodes, each reading the `out` of the one before as `in`."""
    nodes: Nodes = []
    last = "x"
    for at in range(max(1, count // len(block))):
        for op, inputs, output, *attributes in block:
            read = [last if name == "in" else name if name in weights else f"{name}.{at}" for name in inputs.split()]
            nodes.append(helper.make_node(op, read, [f"{output}.{at}"], name=f"{output}.{at}", **(attributes or [{}])[0]))
        last = f"out.{at}"
    return nodes


def encoder(count: int) -> tuple[Nodes, Weights]:
    """Layers of BERT as exporters write them, of two heads: all of it fuses."""
    rng = np.random.default_rng(0)
    square = ("wq", "wk", "wv", "wo", "wf", "we")
    vectors = ("bq", "bk", "bv", "bo", "bf", "be", "beta")
    weights: Weights = {name: (rng.standard_normal((WIDTH, WIDTH)) / 3).astype(np.float32) for name in square}
    weights |= {name: rng.standard_normal(WIDTH).astype(np.float32) for name in vectors}
    weights |= {
        name: np.array(value, np.float32) for name, value in (("scale", 0.5), ("root", 2**0.5), ("one", 1), ("half", 0.5))
    }
    weights |= {"gamma": np.ones(WIDTH, np.float32), "split": np.array([0, 0, 2, WIDTH // 2]), "merge": np.array([0, 0, WIDTH])}
    return repeated(LAYER, count, weights), weights


LAYER: tuple[Row, ...] = (
    *(("MatMul", f"in w{name}", f"{name}0") for name in "qkv"),
    *(("Add", f"{name}0 b{name}", f"{name}1") for name in "qkv"),
    *(("Reshape", f"{name}1 split", f"{name}2") for name in "qkv"),
    ("Transpose", "q2", "q", {"perm": [0, 2, 1, 3]}),
    ("Transpose", "k2", "k", {"perm": [0, 2, 3, 1]}),
    ("Transpose", "v2", "v", {"perm": [0, 2, 1, 3]}),
    ("MatMul", "q k", "product"),
    ("Mul", "product scale", "scores"),
    ("Softmax", "scores", "weights", {"axis": -1}),
    ("MatMul", "weights v", "context"),
    ("Transpose", "context", "turned", {"perm": [0, 2, 1, 3]}),
    ("Reshape", "turned merge", "merged"),
    ("MatMul", "merged wo", "o0"),
    ("Add", "o0 bo", "o1"),
    ("Add", "o1 in", "sum"),
    ("LayerNormalization", "sum gamma beta", "norm", {"axis": -1}),
    ("MatMul", "norm wf", "f0"),
    ("Add", "f0 bf", "f1"),
    ("Div", "f1 root", "f2"),
    ("Erf", "f2", "f3"),
    ("Add", "f3 one", "f4"),
    ("Mul", "f1 f4", "f5"),
    ("Mul", "f5 half", "gelu"),
    ("MatMul", "gelu we", "e0"),
    ("Add", "e0 be", "e1"),
    ("Add", "e1 norm", "total"),
    ("LayerNormalization", "total gamma beta", "out", {"axis": -1}),
)
BLOCK: tuple[Row, ...] = (
    ("MatMul", "in weight", "product"),
    ("Add", "product bias", "linear"),
    ("Div", "linear root", "scaled"),
    ("Erf", "scaled", "erf"),
    ("Add", "erf one", "shifted"),
    ("Mul", "linear shifted", "gated"),
    ("Mul", "gated half", "gelu"),
    ("Add", "gelu in", "sum"),
    ("ReduceMean", "sum", "mean", {"axes": [-1]}),
    ("Sub", "sum mean", "centred"),
    ("Pow", "centred two", "squared"),
    ("ReduceMean", "squared", "variance", {"axes": [-1]}),
    ("Add", "variance epsilon", "safe"),
    ("Sqrt", "safe", "deviation"),
    ("Div", "centred deviation", "normed"),
    ("Mul", "normed gamma", "stretched"),
    ("Add", "stretched beta", "out"),
)


def wide(count: int) -> tuple[Nodes, Weights]:
    """One value that half of all nodes read, summed up two by two."""
    nodes = [helper.make_node("Tanh", ["x"], ["shared"], name="shared")]
    weights: Weights = {f"scale{at}": np.full(WIDTH, 1 + at / 7, np.float32) for at in range(7)}
    left = []
    for at in range(max(2, count // 3)):
        nodes.append(helper.make_node("Mul", ["shared", f"scale{at % 7}"], [f"m{at}"], name=f"m{at}"))
        nodes.append(helper.make_node("Sub", [f"m{at}", f"scale{at // 7 % 7}"], [f"s{at}"], name=f"s{at}"))
        left.append(f"s{at}")
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        made = [f"a{len(nodes) + at}" for at in range(len(pairs))]
        nodes += [helper.make_node("Max", list(pair), [name], name=name) for pair, name in zip(pairs, made, strict=True)]
        left = [*made, *left[2 * len(pairs) :]]
    return nodes, weights


SHAPES: dict[str, Callable[[int], tuple[Nodes, Weights]]] = {"chain": chain, "blocks": blocks, "wide": wide, "encoder": encoder}


def write(shape: str, count: int, path: Path) -> Path:
    """An .onnx file of about `count` nodes."""
    nodes, weights = SHAPES[shape](count)
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH]) for name in ("x", nodes[-1].output[0])
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, shape, infos[:1], infos[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
