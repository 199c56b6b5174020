"""An encoder built to overflow float16, in an .onnx file: nothing in its constants tells, only what it computes.

The second projection of the first feed-forward makes one channel of 1e5, which the LayerNorm behind it reads (before a pre-norm
layer it stays in the residual stream to the end); the mask is -1e9; a logit reaches 70,000.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

WORDS, HEADS, SIZE, DEEP, CLASSES, LAYERS = 50, 4, 16, 128, 16, 2
WIDTH = HEADS * SIZE
DIMS = ("batch", "length")
LARGE, LOGIT = 1e5, 7e4
Row = tuple[str, str, str] | tuple[str, str, str, dict[str, object]]


def weights(pre_norm: bool, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def random(*dims: int, scale: float = 0.15) -> np.ndarray:
        return rng.standard_normal(dims) * scale

    made = {"table": random(WORDS, WIDTH, scale=1.0), "one": np.array(1.0), "low": np.array(-1e9), "scale": np.array(SIZE**-0.5)}
    norms = [f"{at}.norm{n}" for at in range(LAYERS) for n in (1, 2)] + ["last"]
    for name in norms:
        made |= {f"{name}.g": 1 + random(WIDTH), f"{name}.b": random(WIDTH)}
    for at in range(LAYERS):
        made |= {f"{at}.{name}": random(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
        made |= {f"{at}.{name}": random(WIDTH) for name in ("bq", "bk", "bv", "bo", "b2")}
        made |= {f"{at}.w1": random(WIDTH, DEEP), f"{at}.b1": random(DEEP), f"{at}.w2": random(DEEP, WIDTH)}
    made["0.w2"][:, 5] = LARGE / 65 * (1 + random(DEEP))  # GELU's outputs sum to 65 or so
    made |= {"head.w": random(WIDTH, CLASSES), "head.b": random(CLASSES)}
    last = f"{'last' if pre_norm else '1.norm2'}.b"
    made[last] = random(WIDTH, scale=1.0)
    made["head.w"][:, 3] = (1.25 if pre_norm else 1.45) * LOGIT / np.abs(made[last]).sum() * np.sign(made[last])
    return {name: array.astype(np.float32) for name, array in made.items()}


def _attention(at: int, x: str) -> list[Row]:
    rows: list[Row] = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        one = f"{at}.{name}"
        rows += [
            ("MatMul", f"{x} {at}.w{name}", f"{one}.0"),
            ("Add", f"{one}.0 {at}.b{name}", f"{one}.1"),
            ("Reshape", f"{one}.1 heads", f"{one}.2"),
            ("Transpose", f"{one}.2", one, {"perm": perm}),
        ]
    return [
        *rows,
        ("MatMul", f"{at}.q {at}.k", f"{at}.raw"),
        ("Mul", f"{at}.raw scale", f"{at}.scores"),
        ("Add", f"{at}.scores mask", f"{at}.masked"),
        ("Softmax", f"{at}.masked", f"{at}.p", {"axis": -1}),
        ("MatMul", f"{at}.p {at}.v", f"{at}.c"),
        ("Transpose", f"{at}.c", f"{at}.c1", {"perm": [0, 2, 1, 3]}),
        ("Reshape", f"{at}.c1 flat", f"{at}.c2"),
        ("MatMul", f"{at}.c2 {at}.wo", f"{at}.a0"),
        ("Add", f"{at}.a0 {at}.bo", f"{at}.a"),
    ]


def _feed_forward(at: int, x: str) -> list[Row]:
    return [
        ("MatMul", f"{x} {at}.w1", f"{at}.f0"),
        ("Add", f"{at}.f0 {at}.b1", f"{at}.f1"),
        ("Gelu", f"{at}.f1", f"{at}.f2"),
        ("MatMul", f"{at}.f2 {at}.w2", f"{at}.f3"),
        ("Add", f"{at}.f3 {at}.b2", f"{at}.f"),
    ]


def _norm(name: str, x: str, y: str) -> Row:
    return ("LayerNormalization", f"{x} {name}.g {name}.b", y, {"axis": -1, "epsilon": 1e-5})


def _layer(at: int, x: str, pre_norm: bool) -> tuple[list[Row], str]:
    if pre_norm:
        first = [_norm(f"{at}.norm1", x, f"{at}.n1"), *_attention(at, f"{at}.n1"), ("Add", f"{x} {at}.a", f"{at}.s1")]
        second = [_norm(f"{at}.norm2", f"{at}.s1", f"{at}.n2"), *_feed_forward(at, f"{at}.n2")]
        return [*first, *second, ("Add", f"{at}.s1 {at}.f", f"{at}.s2")], f"{at}.s2"
    first = [*_attention(at, x), ("Add", f"{at}.a {x}", f"{at}.s1"), _norm(f"{at}.norm1", f"{at}.s1", f"{at}.n1")]
    second = [*_feed_forward(at, f"{at}.n1"), ("Add", f"{at}.f {at}.n1", f"{at}.s2")]
    return [*first, *second, _norm(f"{at}.norm2", f"{at}.s2", f"{at}.n2")], f"{at}.n2"


def encoder(path: Path, *, pre_norm: bool = False) -> Path:
    """Write the encoder: ids and mask [batch, length] -> logits [batch, CLASSES] of the first place."""
    rows: list[Row] = [
        ("Gather", "table input_ids", "x"),
        ("Cast", "attention_mask", "seen", {"to": TensorProto.FLOAT}),
        ("Sub", "one seen", "unseen"),
        ("Mul", "unseen low", "bias"),
        ("Unsqueeze", "bias axes", "mask"),
    ]
    x = "x"
    for at in range(LAYERS):
        made, x = _layer(at, x, pre_norm)
        rows += made
    rows += [_norm("last", x, "h")] if pre_norm else [("Identity", x, "h")]
    rows += [("Gather", "h zero", "cls", {"axis": 1}), ("MatMul", "cls head.w", "logits0"), ("Add", "logits0 head.b", "logits")]
    indices = {"axes": [1, 2], "heads": [0, 0, HEADS, SIZE], "flat": [0, 0, WIDTH]}
    values = {name: np.array(value, np.int64) for name, value in indices.items()} | {"zero": np.array(0, np.int64)}
    nodes = [oh.make_node(op, i.split(), [o], name=f"n_{o}", **dict(*extra)) for op, i, o, *extra in rows]
    inputs = [oh.make_tensor_value_info(name, TensorProto.INT64, DIMS) for name in ("input_ids", "attention_mask")]
    output = oh.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", CLASSES))
    stored = [numpy_helper.from_array(array, name) for name, array in (weights(pre_norm) | values).items()]
    graph = oh.make_graph(nodes, "overflowing", inputs, [output], stored)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path
