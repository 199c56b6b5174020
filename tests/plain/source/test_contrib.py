"""Expansions of com.microsoft operators against ONNX Runtime's own kernels, on random inputs and every form of mask."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from bertc.graph import load_graph, upgrade_opset
from bertc.runtime import ReferenceRunner
from bertc.source import contrib_operators as contrib

B, S, P, HEADS, D = 3, 7, 4, 2, 8
H, T = HEADS * D, S + P
TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT32, "l": TensorProto.INT64}


def rng_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def expansion(
    folder: Path, op: str, feeds: dict, weights: dict, outputs: dict, inputs: list, *, opset=17, domain=None, **attributes
):
    """(ONNX Runtime's outputs, those of the expansion, the expanded graph) for one node."""
    domain = "com.microsoft" if domain is None else domain
    node = oh.make_node(op, inputs, list(outputs), name="node", domain=domain, **attributes)
    ports = [
        oh.make_tensor_value_info(n, oh.np_dtype_to_tensor_dtype(a.dtype), [f"{n}_{i}" for i in range(a.ndim)])
        for n, a in feeds.items()
    ]
    made = [oh.make_tensor_value_info(n, TYPES[t], [f"{n}_{i}" for i in range(r)]) for n, (t, r) in outputs.items() if n]
    graph = oh.make_graph([node], "g", ports, made, [numpy_helper.from_array(a, n) for n, a in weights.items()])
    opsets = [oh.make_opsetid("", opset), oh.make_opsetid("com.microsoft", 1)]
    path = folder / "m.onnx"
    onnx.save(oh.make_model(graph, opset_imports=opsets, ir_version=8), path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    loaded = load_graph(path)
    contrib.claim_own(loaded.model)
    upgraded = upgrade_opset(loaded).graph.copy()
    done, refused = contrib.expand_contrib(upgraded.model)
    assert (done, refused) == ([op], [])
    assert all(n.domain == "" for n in upgraded.model.graph.all_nodes())
    got = ReferenceRunner(upgraded).run(feeds)
    return dict(zip([n for n in outputs if n], wanted, strict=True)), got


def compare(wanted: dict, got: dict, limit: float = 2e-6) -> None:
    for name, array in wanted.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        assert np.abs(got[name].astype(np.float64) - array).max() <= limit * max(1.0, np.abs(array).max()), name


def limit_of(mask: str, form: str) -> float:
    """A row that is all masked has scores near -10000, where float32 has steps of 0.001."""
    return 1e-3 if (mask, form) == ("dead", "bias") else 2e-6


def masks(total: int) -> dict[str, np.ndarray | None]:
    two = np.ones((B, total), np.int32)
    two[0, 5:], two[1, :2], two[2, 1::2] = 0, 0, 0
    three = rng_of("three").integers(0, 2, (B, S, total)).astype(np.int32)
    three[:, :, 0] = 1
    lengths = np.array([total, 3, 1], np.int32)
    return {
        "none": None, "two": two, "dead": np.concatenate([two[:2], two[:1] * 0]), "three": three, "lengths": lengths,
        "ends_starts": np.concatenate([lengths, [1, 0, 0]]).astype(np.int32),
    }  # fmt: skip


@pytest.mark.parametrize("mask", masks(S))
@pytest.mark.parametrize("mode", ["plain", "causal", "past", "bias", "sizes"])
def test_attention(tmp_path: Path, mask: str, mode: str) -> None:
    rng = rng_of(f"{mask} {mode}")
    past = mode == "past"
    v_size = D * HEADS * 2 if mode == "sizes" else H
    given = masks(T if past else S)[mask]
    feeds = {"x": rng.standard_normal((B, S, H)).astype(np.float32)}
    weights = {
        "w": rng.standard_normal((H, 2 * H + v_size)).astype(np.float32),
        "b": rng.standard_normal(2 * H + v_size).astype(np.float32),
    }
    names = ["x", "w", "b", "", "", ""]
    attributes: dict = {"num_heads": HEADS}
    if given is not None:
        feeds["mask"], names[3] = given, "mask"
    if past:
        feeds["past"], names[4] = rng.standard_normal((2, B, HEADS, P, D)).astype(np.float32), "past"
    if mode == "bias":
        feeds["bias"], names[5] = rng.standard_normal((1, HEADS, S, S)).astype(np.float32), "bias"
    if mode == "causal" or past:
        attributes["unidirectional"] = 1
    if mode == "sizes":
        attributes["qkv_hidden_sizes"] = [H, H, v_size]
        attributes["scale"] = 0.3
    outputs = {"y": ("f", 3), **({"present": ("f", 5)} if past else {})}
    compare(*expansion(tmp_path, "Attention", feeds, weights, outputs, names, **attributes), limit_of(mask, mode))


@pytest.mark.parametrize("mask", ["none", "two", "dead", "three", "lengths"])
@pytest.mark.parametrize("form", ["apart", "cross", "past", "causal", "bias"])
def test_multi_head_attention(tmp_path: Path, mask: str, form: str) -> None:
    rng = rng_of(f"{mask} {form}")

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    names, weights = ["q", "k", "v", "", "", "", "", ""], {}
    attributes: dict = {"num_heads": HEADS}
    total = T if form == "past" else 5 if form == "cross" else S
    feeds = {"q": draw(B, S, H), "k": draw(B, S, H), "v": draw(B, S, H)}
    if form == "cross":
        feeds |= {"k": draw(B, HEADS, 5, D), "v": draw(B, HEADS, 5, D)}
    if form == "past":
        feeds |= {"pk": draw(B, HEADS, P, D), "pv": draw(B, HEADS, P, D)}
        names[6:] = ["pk", "pv"]
    if form == "causal":
        attributes["unidirectional"] = 1
    if form in ("bias", "past", "apart"):
        weights["b"], names[3] = draw(3 * H), "b"
    if form == "bias":
        feeds["sb"], names[5] = draw(B, HEADS, S, total), "sb"
    given = masks(total)[mask]
    if given is not None:
        feeds["mask"], names[4] = given, "mask"
    outputs = {"y": ("f", 3), **({"ok": ("f", 4), "ov": ("f", 4)} if form == "past" else {})}
    compare(*expansion(tmp_path, "MultiHeadAttention", feeds, weights, outputs, names, **attributes), limit_of(mask, form))


@pytest.mark.parametrize("form", ["all", "no_segments", "positions", "no_mask", "sum"])
def test_embed_layer_normalization(tmp_path: Path, form: str) -> None:
    rng = rng_of(form)
    feeds = {
        "ids": rng.integers(0, 20, (B, S)).astype(np.int32),
        "types": rng.integers(0, 2, (B, S)).astype(np.int32),
        "mask": masks(S)["two"],
    }
    weights = {
        n: rng.standard_normal(s).astype(np.float32)
        for n, s in {"word": (20, H), "pos": (11, H), "type": (2, H), "g": (H,), "b": (H,)}.items()
    }
    names = ["ids", "types", "word", "pos", "type", "g", "b", "mask"]
    outputs = {"y": ("f", 3), "lengths": ("i", 1)}
    if form == "no_segments":
        names[1] = names[4] = ""
        del feeds["types"], weights["type"]
    if form == "positions":
        feeds["at"] = rng.integers(0, 11, (B, S)).astype(np.int32)
        names.append("at")
    if form == "no_mask":
        names[7] = ""
        del feeds["mask"]
    if form == "sum":
        outputs["sum"] = ("f", 3)
    compare(*expansion(tmp_path, "EmbedLayerNormalization", feeds, weights, outputs, names, epsilon=1e-3))


@pytest.mark.parametrize("skip", [(B, S, H), (1, S, H), (S, H)])
@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("bias", [False, True])
def test_skip_layer_normalization(tmp_path: Path, op: str, skip: tuple, bias: bool) -> None:
    rng = rng_of(f"{op} {skip} {bias}")
    feeds = {"x": rng.standard_normal((B, S, H)).astype(np.float32), "skip": rng.standard_normal(skip).astype(np.float32)}
    weights = {n: rng.standard_normal(H).astype(np.float32) for n in ("g", "b", "bias")}
    names = ["x", "skip", "g", "b", "bias"] if op.startswith("SkipL") else ["x", "skip", "g", "bias"]
    names = names if bias else names[:-1]
    compare(*expansion(tmp_path, op, feeds, weights, {"y": ("f", 3)}, names))


def test_the_sum_of_a_skip_layer_normalization(tmp_path: Path) -> None:
    rng = rng_of("sum")
    path, feeds = tmp_path / "m.onnx", {n: rng.standard_normal((B, S, H)).astype(np.float32) for n in ("x", "skip")}
    node = oh.make_node("SkipLayerNormalization", ["x", "skip", "g"], ["y", "", "", "sum"], domain="com.microsoft")
    ports = [
        [oh.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "s", H]) for n in names] for names in (("x", "skip"), ("y", "sum"))
    ]
    graph = oh.make_graph([node], "g", *ports, [numpy_helper.from_array(rng.standard_normal(H).astype(np.float32), "g")])
    onnx.save(
        oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("com.microsoft", 1)], ir_version=9), path
    )
    wanted = ort.InferenceSession(path).run(None, feeds)
    loaded = load_graph(path)
    contrib.expand_contrib(loaded.model)
    compare(dict(zip(("y", "sum"), wanted, strict=True)), ReferenceRunner(loaded).run(feeds))


@pytest.mark.parametrize("op", ["Gelu", "BiasGelu", "FastGelu", "QuickGelu"])
@pytest.mark.parametrize("bias", [False, True])
def test_gelus(tmp_path: Path, op: str, bias: bool) -> None:
    if bias != (op == "BiasGelu") and op != "FastGelu":
        pytest.skip("takes no bias, or needs one")
    rng = rng_of(op)
    feeds = {"x": rng.standard_normal((B, S, H)).astype(np.float32) * 3}
    weights = {"b": rng.standard_normal(H).astype(np.float32)} if bias else {}
    attributes = {"alpha": 1.3} if op == "QuickGelu" else {}
    compare(*expansion(tmp_path, op, feeds, weights, {"y": ("f", 3)}, ["x", *weights], **attributes))


@pytest.mark.parametrize("batch", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("swap", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(tmp_path: Path, swap: tuple[int, int], batch: tuple[int, int]) -> None:
    rng = rng_of(f"{swap} {batch}")
    logical = {"a": (4, 3, 5, 6), "b": (4, 3, 6, 7)}
    feeds = {}
    for (name, shape), turn, move in zip(logical.items(), swap, batch, strict=True):
        stored = [*shape[:2], shape[3], shape[2]] if turn else [*shape]
        stored = [stored[2], *stored[:2], stored[3]] if move else stored
        feeds[name] = rng.standard_normal(stored).astype(np.float32)
    attributes = {"alpha": 0.5, "transA": swap[0], "transB": swap[1], "transBatchA": batch[0], "transBatchB": batch[1]}
    compare(*expansion(tmp_path, "FusedMatMul", feeds, {}, {"y": ("f", 4)}, ["a", "b"], **attributes))


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "LeakyRelu"])
def test_fused_conv_and_gemm(tmp_path: Path, activation: str) -> None:
    rng = rng_of(activation)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    alpha = {"activation_params": [0.2]} if activation == "LeakyRelu" else {}
    weights = {"w": draw(6, 4, 3), "b": draw(6)}
    compare(
        *expansion(
            tmp_path, "FusedConv", {"x": draw(2, 4, 9)}, weights, {"y": ("f", 3)}, ["x", "w", "b"],
            activation=activation, pads=[1, 1], strides=[2], kernel_shape=[3], **alpha,
        )
    )  # fmt: skip
    alpha = {"activation_alpha": 0.2} if activation == "LeakyRelu" else {}
    weights = {"w": draw(5, 4), "c": draw(5)}
    compare(
        *expansion(
            tmp_path, "FusedGemm", {"x": draw(3, 4)}, weights, {"y": ("f", 2)}, ["x", "w", "c"],
            activation=activation, transB=1, alpha=0.7, beta=1.5, **alpha,
        )
    )  # fmt: skip


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("form", ["rows", "offset", "partial"])
def test_rotary_embedding(tmp_path: Path, form: str, rank: int, interleaved: int) -> None:
    rng = rng_of(f"{form}{rank}{interleaved}")
    width = 4 if form == "partial" else D
    shape = (B, S, H) if rank == 3 else (B, HEADS, S, D)
    at = np.array([2]) if form == "offset" else rng.integers(0, 16, (B, S))
    feeds = {"x": rng.standard_normal(shape).astype(np.float32), "at": at.astype(np.int64)}
    angle = rng.standard_normal((16, width // 2))
    weights = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
    attributes = {
        "interleaved": interleaved,
        **({"num_heads": HEADS, "rotary_embedding_dim": width} if form == "partial" else {}),
    }
    compare(*expansion(tmp_path, "RotaryEmbedding", feeds, weights, {"y": ("f", rank)}, ["x", "at", "cos", "sin"], **attributes))


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_norms_without_a_domain(tmp_path: Path, op: str) -> None:
    rng = rng_of(op)
    feeds = {"x": rng.standard_normal((B, S, H)).astype(np.float32)}
    weights = {"g": rng.standard_normal(H).astype(np.float32)}
    made = expansion(tmp_path, op, feeds, weights, {"y": ("f", 3)}, ["x", "g"], opset=14, domain="", axis=-1, epsilon=1e-3)
    compare(*made)


def test_what_has_no_expansion_is_named(tmp_path: Path) -> None:
    node = oh.make_node(
        "RotaryEmbedding", ["x", "at", "cos", "sin"], ["y"], name="turn", domain="com.microsoft", is_packed_batching=1
    )
    other = oh.make_node("GroupQueryAttention", ["x", "x", "x", "", "", "at", "at"], ["z"], name="gqa", domain="com.microsoft")
    ports = [oh.make_tensor_value_info(n, t, ["b", "s", "h"][:r]) for n, t, r in (("x", 1, 3), ("at", 7, 2))]
    outs = [oh.make_tensor_value_info(n, 1, ["b", "s", "h"]) for n in ("y", "z")]
    tables = [numpy_helper.from_array(np.ones((16, 4), np.float32), n) for n in ("cos", "sin")]
    graph = oh.make_graph([node, other], "g", ports, outs, tables)
    onnx.save(
        oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20), oh.make_opsetid("com.microsoft", 1)]), tmp_path / "m.onnx"
    )
    loaded = load_graph(tmp_path / "m.onnx")
    done, refused = contrib.expand_contrib(loaded.model)
    assert done == [] and "turn" in refused[0] and "is_packed_batching" in refused[0] and "gqa" in refused[1]
    assert [n.name for n in loaded.model.graph] == ["turn", "gqa"]


@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
@pytest.mark.parametrize(("bits", "block", "k"), [(4, 16, 64), (4, 32, 70), (8, 32, 64), (2, 32, 64)])
def test_matmul_nbits(tmp_path: Path, bits: int, block: int, k: int, zeros: str) -> None:
    if (bits, zeros) == (8, "float"):
        pytest.skip("ONNX Runtime has no kernel")
    rng, n = rng_of(f"{bits} {block} {k} {zeros}"), 24
    count = -(-k // block)
    weights = {
        "w": rng.integers(0, 256, (n, count, block * bits // 8)).astype(np.uint8),
        "s": rng.random((n, count)).astype(np.float32),
    }
    names = ["x", "w", "s"]
    if zeros == "packed":
        weights["z"] = rng.integers(0, 256, (n, -(-count * bits // 8))).astype(np.uint8)
    if zeros == "float":
        weights["z"] = (rng.random((n, count)) * 2**bits).astype(np.float32)
    names += ["z"] if "z" in weights else []
    feeds = {"x": rng.standard_normal((B, S, k)).astype(np.float32)}
    made = expansion(tmp_path, "MatMulNBits", feeds, weights, {"y": ("f", 3)}, names, K=k, N=n, bits=bits, block_size=block)
    compare(*made, 5e-6)


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(tmp_path: Path, kind: int) -> None:
    rng, n, k, block = rng_of(f"bnb{kind}"), 24, 64, 32
    weights = {"w": rng.integers(0, 256, n * k // 2).astype(np.uint8), "s": rng.random(n * k // block).astype(np.float32)}
    feeds = {"x": rng.standard_normal((B, S, k)).astype(np.float32)}
    made = expansion(
        tmp_path, "MatMulBnb4", feeds, weights, {"y": ("f", 3)}, ["x", "w", "s"], K=k, N=n, block_size=block, quant_type=kind
    )
    compare(*made, 5e-6)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gather_block_quantized(tmp_path: Path, bits: int, zeros: bool) -> None:
    rng, rows, width, block = rng_of(f"gather {bits} {zeros}"), 20, 64, 16
    weights = {
        "w": rng.integers(0, 256, (rows, width * bits // 8)).astype(np.uint8),
        "s": rng.random((rows, width // block)).astype(np.float32),
    }
    if zeros:
        weights["z"] = rng.integers(0, 256, (rows, width // block * bits // 8)).astype(np.uint8)
    feeds = {"ids": rng.integers(0, rows, (B, S))}
    names = ["w", "ids", "s", *(["z"] if zeros else [])]
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    compare(*expansion(tmp_path, "GatherBlockQuantized", feeds, weights, {"y": ("f", 3)}, names, **attributes))
