"""A fused encoder, made by hand: every operator that a BERT fuses to, with weights that hide nothing (no bias is zero)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from bertc.graph.model import Graph
from bertc.ops.builder import Builder

WORDS, POSITIONS, HEADS, SIZE, DEEP = 50, 300, 4, 16, 128
CLASSES = 8  # a head of odd width costs a kernel of its own: it is padded and cut again
WIDTH = HEADS * SIZE


def encoder(layers: int = 2, *, query_bias: bool = True, size: int = SIZE, seed: int = 0) -> Graph:
    """ids and mask [batch, length] -> the CLS row of the last layer [batch, width], then a linear head."""
    op, rng, width = Builder(), np.random.default_rng(seed), HEADS * size
    shape = ir.Shape(["batch", "length"])
    ids, mask = (ir.Value(name=n, shape=shape, type=ir.TensorType(ir.DataType.INT64)) for n in ("input_ids", "attention_mask"))

    def weight(name: str, *dims: int, scale: float = 0.1, around: float = 0.0) -> ir.Value:
        array = (around + rng.standard_normal(dims) * scale).astype(np.float32)
        return op.initializer(ir.tensor(array, name=name), name=name)

    def norm(name: str) -> list[ir.Value]:
        return [weight(f"{name}.gamma", width, around=1.0), weight(f"{name}.beta", width)]

    def fused(kind: str, name: str, *given: ir.Value | None, rank: int = 3, last: int = width, **attributes: object) -> ir.Value:
        value = getattr(op, kind)(*given, _domain="bertc", **attributes)
        value.shape, value.type = ir.Shape([*["batch", "length"][: rank - 1], last]), ir.TensorType(ir.DataType.FLOAT)
        node = op.nodes[-1]
        node.name, value.name = name, f"{name}.out"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["m", name.rpartition(".")[0], name])
        return value

    tables = [weight("word", WORDS, width, scale=1.0), weight("position", POSITIONS, width, scale=1.0)]
    x = fused("FusedEmbeddings", "m.embed", ids, None, None, *tables, None, *norm("embed"), epsilon=1e-12)
    score = fused("FusedScoreMask", "m.mask", mask, low=float(np.finfo(np.float32).min))
    score.shape = ir.Shape(["batch", 1, 1, "length"])
    for i in range(layers):
        at = f"m.layer.{i}"
        bias = weight(f"{at}.bqkv", 3 * width)
        if not query_bias:
            bias.const_value = ir.tensor(np.where(np.arange(3 * width) < width, 0, bias.const_value.numpy()), name=bias.name)  # type: ignore[union-attr]
        packed = weight(f"{at}.wqkv", width, 3 * width)
        projected = [weight(f"{at}.wo", width, width), weight(f"{at}.bo", width)]
        a = fused("FusedAttention", f"{at}.att", x, score, packed, bias, *projected, num_heads=HEADS, scale=size**-0.5)
        x = fused("FusedSkipLayerNorm", f"{at}.norm1", a, x, None, *norm(f"{at}.n1"), epsilon=1e-12)
        h = fused("FusedLinear", f"{at}.up", x, weight(f"{at}.w1", width, DEEP), last=DEEP)
        h = fused("FusedBiasGelu", f"{at}.gelu", h, weight(f"{at}.b1", DEEP), last=DEEP, form="erf")
        h = fused("FusedLinear", f"{at}.down", h, weight(f"{at}.w2", DEEP, width))
        x = fused("FusedSkipLayerNorm", f"{at}.norm2", h, x, weight(f"{at}.b2", width), *norm(f"{at}.n2"), epsilon=1e-12)
    zero = op.initializer(ir.tensor(np.int64(0), name="zero"), name="zero")
    cls = op.Gather(x, zero, axis=1)
    cls.shape, cls.type, cls.name, op.nodes[-1].name = ir.Shape(["batch", width]), ir.TensorType(ir.DataType.FLOAT), "cls", "cls"
    y = fused("FusedLinear", "m.head", cls, weight("head.w", width, CLASSES), weight("head.b", CLASSES), rank=2, last=CLASSES)
    graph = ir.Graph([ids, mask], [y], nodes=op.nodes, initializers=op.initializers, opset_imports={"": 20, "bertc": 1}, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def convolution(norm: str = "none", group: int = 1, bias: bool = True) -> Graph:
    """One layer of a feature encoder."""
    op, rng = Builder(), np.random.default_rng(1)

    def weight(name: str, *shape: int) -> ir.Value:
        array = rng.standard_normal(shape).astype(np.float32)
        return op.initializer(ir.tensor(array, name=name), name=name)

    x = ir.Value(name="x", shape=ir.Shape(["b", 6, "t"]), type=ir.TensorType(ir.DataType.FLOAT))
    given = [x, weight("w", 10, 6 // group, 3), weight("bias", 10) if bias else None]
    given += [] if norm == "none" else [weight("gamma", 10), weight("beta", 10)]
    stated = {"strides": [2], "pads": [2, 1], "dilations": [2], "group": group, "norm": norm, "epsilon": 1e-6, "form": "tanh"}
    (y,) = op.op_multi_out("FusedConv1dGelu", given, stated, num_outputs=1, domain="bertc")
    y.name, y.type, y.shape, op.nodes[-1].name = "y", x.type, ir.Shape(["b", 10, "t2"]), "conv"
    graph = ir.Graph([x], [y], nodes=op.nodes, initializers=op.initializers, opset_imports={"": 20, "bertc": 1}, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def feeds(rows: int, length: int, kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """ids and a mask: right, left, holed, random, or with a first row that attends to nothing."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int64)
    if kind == "right":
        mask[:, max(1, length // 2) :] = 0
    elif kind == "left":
        mask[:, : length // 2] = 0
    elif kind == "holed":
        mask[:, length // 3 : length // 2] = 0
    elif kind == "random":
        mask = (rng.random((rows, length)) < 0.6).astype(np.int64)
    elif kind == "none":
        mask[0] = 0
    return {"input_ids": rng.integers(0, WORDS, (rows, length)), "attention_mask": mask}


KINDS = ("right", "left", "holed", "random", "none")
SIZES = ((1, 1), (3, 1), (1, 7), (3, 33))


def assert_equal_for_any_mask(padded: Any, packed: Any, data: st.DataObject) -> None:
    """Two runners of `encoder` on a mask that hypothesis draws: the packed one gives what the padded one does."""
    rows, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    mask = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=rows, max_size=rows))
    )
    given = {"input_ids": np.random.default_rng(rows * length).integers(0, WORDS, mask.shape), "attention_mask": mask}
    (wanted,), (got,) = padded.run(given).values(), packed.run(given).values()
    assert np.abs(wanted - got).max() < 2e-5 * max(1, np.abs(wanted).max())
