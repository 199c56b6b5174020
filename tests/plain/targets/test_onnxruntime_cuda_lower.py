"""The lowerings of onnxruntime-cuda on ONNX Runtime's CPU kernels of the same operators, against the numpy references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fused
import numpy as np
import onnx_ir as ir
import pytest

from bertc import precision, targets
from bertc.graph.model import Graph
from bertc.ops import expansion as canonical
from bertc.plugins import (
    attention,
    bias_gelu,
    cross_attention,
    disentangled_attention,
    embeddings,
    gelu,
    past_attention,
    rotary_attention,
    skip_layernorm,
    skip_rmsnorm,
)
from bertc.runtime.reference import ReferenceRunner
from bertc.targets._onnxruntime_cuda import lower as cuda
from bertc.targets._onnxruntime_cuda.kernels import why_no_kernel

LOW = -3.4028234663852886e38
HEADS, SIZE, IN, OUT = 3, 8, 7, 5
WIDTH = HEADS * SIZE
MASKS = ("none", "keys", "per head", "per row", "everything", "of positions")
LENGTHS = ((2, 9), (1, 1), (3, 1), (2, 8))
KERNELS = targets.get("onnxruntime-cuda").KERNELS  # type: ignore[attr-defined]


class Draw:
    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)


def mask_of(kind: str, rows: int, queries: int, keys: int, draw: Draw) -> np.ndarray | None:
    """What is added to the scores: of right, left and holed padding and a row without a token, of heads, of pairs."""
    if kind == "none":
        return None
    if kind == "keys":
        seen = draw.rng.random((rows, 1, 1, keys)) < 0.6
        seen[0] = False
        return np.where(seen, 0, LOW).astype(np.float32)
    shape = {
        "per head": (1, HEADS, queries, keys),
        "per row": (rows, 1, queries, keys),
        "everything": (rows, HEADS, queries, keys),
        "of positions": (queries, keys),
    }[kind]
    return draw(*shape)


def single(op: str, arrays: Sequence[Any], dims: Mapping[int, Sequence[Any]], outputs: int = 1, **attributes: Any) -> Graph:
    """A graph of one bertc node: inputs of named dimensions where `dims` has them, the others initializers."""
    values: list[ir.Value | None] = []
    for index, array in enumerate(arrays):
        name = f"x{index}"
        if array is None:
            values.append(None)
            continue
        shape = ir.Shape(dims.get(index, array.shape))
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=shape)
        if index not in dims:
            value.const_value = ir.tensor(array, name=name)
        values.append(value)
    node = ir.node(op, values, dict(attributes), domain="bertc", num_outputs=outputs, name="n")
    for index, value in enumerate(node.outputs):
        value.name, value.type, value.shape = (
            f"y{index}",
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([None] * (4 if index else 3)),
        )
    held = [v for v in values if v is not None and v.const_value is not None]
    fed = [v for v in values if v is not None and v.const_value is None]
    opsets = {"": 20, "bertc": 1}
    graph = ir.Graph(fed, node.outputs, nodes=[node], initializers=held, opset_imports=opsets, name="g")
    return Graph(ir.Model(graph, ir_version=10))


def agrees(
    op: str, arrays: Sequence[Any], dims: Mapping[int, Sequence[Any]], wanted: Any, *, quantised: bool = False, **attributes: Any
) -> Mapping[str, int]:
    """The lowering gives what numpy gives, and each of its nodes has a CUDA kernel; the operators it is made of."""
    expected = [wanted] if isinstance(wanted, np.ndarray) else list(wanted)
    made = cuda.lower(single(op, arrays, dims, len(expected), **attributes), quantised=quantised)
    found = ReferenceRunner(made).run({f"x{i}": a for i, a in enumerate(arrays) if i in dims and a is not None})
    for got, want in zip(found.values(), expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 2e-5 * max(1.0, np.abs(want).max())
    for half in (None, ir.DataType.FLOAT16):
        assert [why for node in made.model.graph.all_nodes() if (why := why_no_kernel(node, made.opset, half))] == []
    return made.op_counts()


def of_mask(mask: np.ndarray | None, queries: str = "length", keys: str = "length") -> Sequence[Any]:
    """Its dimensions: 1 where it is broadcast, else by name."""
    if mask is None:
        return ()
    names = ["batch", HEADS, queries, keys][4 - mask.ndim :]
    if mask.ndim == 2:
        return names
    return [1 if at in (0, 1) and size == 1 else 1 if at == 2 and is_keys(mask) else name for at, (name, size) in
            enumerate(zip(names, mask.shape, strict=True))]  # fmt: skip


def is_keys(mask: np.ndarray) -> bool:
    return bool(mask.shape[2] == 1 and (mask.min() == LOW or not mask.any()))


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("quantised", [False, True])
def test_attention(kind: str, size: tuple[int, int], quantised: bool) -> None:
    for inner, outer in ((True, True), (False, True), (True, False)):
        (rows, length), draw = size, Draw(size[1])
        mask = mask_of(kind, rows, length, length, draw)
        weights = draw(IN, 3 * WIDTH), draw(3 * WIDTH) if inner else None, draw(WIDTH, OUT), draw(OUT) if outer else None
        arrays = draw(rows, length, IN), mask, *weights
        dims = {0: ["batch", "length", IN], 1: of_mask(mask)}
        wanted = attention.reference(*arrays, num_heads=HEADS, scale=0.4)
        ops = agrees("FusedAttention", arrays, dims, wanted, quantised=quantised, num_heads=HEADS, scale=0.4)
        assert ops[f"com.microsoft.{'MultiHeadAttention' if quantised else 'Attention'}"] == 1
        assert ops["MatMul"] == (4 if quantised else 1)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("angles", ["one half twice", "halves apart", "of each row"])
def test_rotary_attention(kind: str, angles: str) -> None:
    draw, rows, length = Draw(1), 2, 9
    mask = mask_of(kind, rows, length, length, draw)
    turns = [draw(rows if angles == "of each row" else 1, 1, length, SIZE) for _ in "cs"]
    if angles == "one half twice":
        turns = [np.concatenate([turn[..., : SIZE // 2]] * 2, axis=-1) for turn in turns]
    weights = draw(IN, 3 * WIDTH), draw(3 * WIDTH), draw(WIDTH, OUT), draw(OUT)
    arrays = draw(rows, length, IN), mask, *turns, *weights
    wanted = rotary_attention.reference(*arrays, num_heads=HEADS, scale=0.4)
    dims: dict[int, Any] = {0: ["batch", "length", IN], 1: of_mask(mask)}
    if angles == "of each row":
        dims |= {2: ["batch", 1, "length", SIZE], 3: ["batch", 1, "length", SIZE]}
    ops = agrees("FusedRotaryAttention", arrays, dims, wanted, num_heads=HEADS, scale=0.4)
    assert ops["com.microsoft.MultiHeadAttention"] == 1
    assert ops.get("com.microsoft.RotaryEmbedding", 0) == (2 if angles == "one half twice" else 0)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("queries", "keys"), [(4, 9), (1, 3), (9, 9), (5, 1)])
def test_cross_attention(kind: str, queries: int, keys: int) -> None:
    draw, rows = Draw(2), 2
    mask = mask_of(kind, rows, queries, keys, draw)
    weights = draw(IN, WIDTH), draw(WIDTH), draw(6, 2 * WIDTH), draw(2 * WIDTH), draw(WIDTH, OUT), draw(OUT)
    arrays = draw(rows, queries, IN), draw(rows, keys, 6), mask, *weights
    wanted = cross_attention.reference(*arrays, num_heads=HEADS, scale=0.4)
    dims = {0: ["batch", "length", IN], 1: ["batch", "memory", 6], 2: of_mask(mask, keys="memory")}
    ops = agrees("FusedCrossAttention", arrays, dims, wanted, num_heads=HEADS, scale=0.4)
    assert ops["com.microsoft.MultiHeadAttention"] == 1


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("past", "new"), [(5, 1), (3, 4), (0, 3)])
def test_past_attention(kind: str, past: int, new: int) -> None:
    draw, rows = Draw(3), 2
    mask = mask_of(kind, rows, new, past + new, draw)
    cache = draw(rows, HEADS, past, SIZE), draw(rows, HEADS, past, SIZE)
    weights = draw(IN, 3 * WIDTH), draw(3 * WIDTH), draw(WIDTH, OUT), draw(OUT)
    arrays = draw(rows, new, IN), mask, *cache, *weights
    wanted = past_attention.reference(*arrays, num_heads=HEADS, scale=0.4)
    held = ["batch", HEADS, "past", SIZE]
    dims = {0: ["batch", "length", IN], 1: of_mask(mask, keys="past + length"), 2: held, 3: held}
    ops = agrees("FusedPastAttention", arrays, dims, wanted, num_heads=HEADS, scale=0.4)
    assert ops["com.microsoft.MultiHeadAttention"] == 1


@pytest.mark.parametrize("kind", MASKS)
def test_disentangled_attention(kind: str) -> None:
    draw, rows, length, table = Draw(4), 2, 9, 6
    mask = mask_of(kind, rows, length, length, draw)
    places = [draw.rng.integers(0, table, (1, length, length)) for _ in "cp"]
    weights = draw(IN, 3 * WIDTH), draw(3 * WIDTH), draw(WIDTH, OUT), draw(OUT)
    positions = draw(HEADS, table, SIZE), places[0], draw(HEADS, table, SIZE), places[1]
    arrays = draw(rows, length, IN), mask, *weights, *positions
    wanted = disentangled_attention.reference(*arrays, num_heads=HEADS, scale=0.4)
    dims = {0: ["batch", "length", IN], 1: of_mask(mask), 7: [1, "length", "length"], 9: [1, "length", "length"]}
    ops = agrees("FusedDisentangledAttention", arrays, dims, wanted, num_heads=HEADS, scale=0.4)
    assert ops["com.microsoft.MultiHeadAttention"] == 1 and "Softmax" not in ops


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_norms(bias: bool, shift: bool, both: bool) -> None:
    draw, dims = Draw(5), {0: ["batch", "length", WIDTH], 1: ["batch", "length", WIDTH]}
    x, skip, gamma = draw(2, 9, WIDTH), draw(2, 9, WIDTH), draw(WIDTH)
    b, beta = draw(WIDTH) if bias else None, draw(WIDTH) if shift else None
    for epsilon in (1e-12, 1e-2):
        wanted = skip_layernorm.reference(x, skip, b, gamma, beta, epsilon)[: 1 + both]
        ops = agrees("FusedSkipLayerNorm", (x, skip, b, gamma, beta), dims, wanted, epsilon=epsilon)
        assert ops == {"com.microsoft.SkipLayerNormalization": 1}
        wanted = skip_rmsnorm.reference(x, skip, b, gamma, epsilon)[: 1 + both]
        ops = agrees("FusedSkipRmsNorm", (x, skip, b, gamma), dims, wanted, epsilon=epsilon)
        assert ops == {"com.microsoft.SkipSimplifiedLayerNormalization": 1}


def test_a_norm_of_a_skip_that_is_broadcast_keeps_its_body() -> None:
    """The kernel would take it for one row after another."""
    draw = Draw(6)
    x, skip, gamma, beta = draw(2, 9, WIDTH), draw(2, 1, WIDTH), draw(WIDTH), draw(WIDTH)
    wanted = skip_layernorm.reference(x, np.broadcast_to(skip, x.shape), None, gamma, beta, 1e-5)[:1]
    dims = {0: ["batch", "length", WIDTH], 1: ["batch", 1, WIDTH]}
    assert agrees("FusedSkipLayerNorm", (x, skip, None, gamma, beta), dims, wanted, epsilon=1e-5)["LayerNormalization"] == 1


@pytest.mark.parametrize("form", ["erf", "tanh", "quick"])
def test_gelu(form: str) -> None:
    draw = Draw(7)
    x, b = draw(2, 9, WIDTH) * 3, draw(WIDTH)
    x[0, 0, 0] = 4
    ops = agrees("FusedBiasGelu", (x, b), {0: ["batch", "length", WIDTH]}, bias_gelu.reference(x, b, form), form=form)
    assert set(ops) == {
        "erf": {"com.microsoft.BiasGelu"}, "tanh": {"com.microsoft.FastGelu"}, "quick": {"Add", "com.microsoft.QuickGelu"}
    }[form]  # fmt: skip
    agrees("FusedGelu", (x,), {0: ["batch", "length", WIDTH]}, gelu.reference(x, form), form=form)


@pytest.mark.parametrize("positions", ["none", "one row", "each row", "counted"])
@pytest.mark.parametrize("types", ["none", "given", "row 0"])
def test_embeddings(positions: str, types: str) -> None:
    draw, rows, length = Draw(8), 2, 6
    ids, kinds = draw.rng.integers(0, 9, (rows, length)), draw.rng.integers(0, 2, (rows, length))
    places = draw.rng.integers(0, 7, (rows if positions == "each row" else 1, length))
    tables = draw(9, WIDTH), None if positions == "none" else draw(7, WIDTH), None if types == "none" else draw(2, WIDTH)
    given = places if positions in ("one row", "each row") else None
    arrays = ids, given, kinds if types == "given" else None, *tables, draw(WIDTH), draw(WIDTH)
    dims = {0: ["batch", "length"], 1: ["batch" if positions == "each row" else 1, "length"], 2: ["batch", "length"]}
    ops = agrees("FusedEmbeddings", arrays, dims, embeddings.reference(*arrays, epsilon=1e-12), epsilon=1e-12)
    assert ops.get("com.microsoft.EmbedLayerNormalization", 0) == (positions != "none")


@pytest.mark.parametrize("kind", [*(kind for kind in fused.KINDS if kind != "none"), "full"])
def test_an_encoder_in_half_precision_keeps_its_direction(kind: str) -> None:
    """Not a row without a token: float32 adds its scores to -3.4e38 and loses them, to the -3e4 of float16 not quite."""
    source = fused.encoder()
    lowered = cuda.lower(source)
    truth = ReferenceRunner(canonical.expand(source))
    for mode in ("fp16", "bf16"):
        typed = precision.get(mode).apply(lowered, kernels=KERNELS)
        found = ReferenceRunner(typed.graph)
        for rows, length in fused.SIZES:
            feeds = fused.feeds(rows, length, kind)
            (wanted,), (got,) = truth.run(feeds).values(), found.run(feeds).values()
            cosine = (wanted * got).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(got, axis=1)
            assert cosine.min() >= (0.9999 if mode == "fp16" else 0.999)
