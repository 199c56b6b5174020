"""The kernel list is read from a real builder log: kernels_fp16.log, the graph below built by TensorRT-RTX 1.7.1 for sm89.

The log is cut to its layer list. Two profiles; the layers `signal`, `wait` and `copy_h2d` at its end come from other builds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc.core.errors import BuildFailed
from bertc.graph.model import Graph
from bertc.graph.provenance import module_path
from bertc.targets._tensorrt import kernel_log as _kernels
from bertc.targets._tensorrt import weight_check as _weights
from bertc.targets._tensorrt.kernel_log import Kernel, Tensor

LOG = (Path(__file__).parent / "kernels_fp16.log").read_text(encoding="utf-8")
WIDTH = 64
HEAD = "heads = Constant<value = int64[4] {0, 0, 2, 32}>() flat = Constant<value = int64[3] {0, 0, 64}>()\n"
LAYER = """
    q0_N = MatMul(INPUT, wq_N) q1_N = Reshape(q0_N, heads) q_N = Transpose<perm = [0, 2, 1, 3]>(q1_N)
    k0_N = MatMul(INPUT, wk_N) k1_N = Reshape(k0_N, heads) k_N = Transpose<perm = [0, 2, 3, 1]>(k1_N)
    v0_N = MatMul(INPUT, wv_N) v1_N = Reshape(v0_N, heads) v_N = Transpose<perm = [0, 2, 1, 3]>(v1_N)
    s_N = MatMul(q_N, k_N) s32_N = Cast<to = 1>(s_N) m_N = Add(s32_N, mask) p32_N = Softmax<axis = -1>(m_N)
    p_N = Cast<to = KIND>(p32_N) c0_N = MatMul(p_N, v_N) c1_N = Transpose<perm = [0, 2, 1, 3]>(c0_N) c_N = Reshape(c1_N, flat)
    o_N = MatMul(c_N, wo_N) h_N = Add(o_N, INPUT)
    f_N = MatMul(h_N, wf_N) b_N = Add(f_N, bf_N) g_N = Gelu(b_N) d_N = MatMul(g_N, wd_N) OUTPUT = Add(d_N, h_N)
"""


def encoder(kind: str = "float16") -> Graph:
    """Two layers of attention and feed-forward, 64 wide; nodes named after their outputs, with the exporter's module scopes."""
    body = HEAD
    for n, (source, target) in enumerate([("x", "y_0"), ("y_0", "y")]):
        layer = LAYER.replace("_N", f"_{n}").replace("INPUT", source).replace("OUTPUT", target)
        body += layer.replace("KIND", "10" if kind == "float16" else "1")
    header = '<ir_version: 10, opset_import: ["": 20]>\n'
    signature = f"g ({kind}[batch, length, 64] x, float[batch, 1, 1, length] mask) => ({kind}[batch, length, 64] y)"
    model = onnx.parser.parse_model(f"{header}{signature} {{ {body} }}")
    rng = np.random.default_rng(0)
    for name in [f"{w}_{n}" for n in range(2) for w in ("wq", "wk", "wv", "wo", "wf", "wd", "bf")]:
        shape = {"wf": (WIDTH, 4 * WIDTH), "wd": (4 * WIDTH, WIDTH), "bf": (4 * WIDTH,)}.get(name[:2], (WIDTH, WIDTH))
        values = rng.normal(0, 0.1, shape).astype("float16" if kind == "float16" else "float32")
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    for node in graph.model.graph:
        number = 0 if str(node.name).endswith("0") else 1
        scopes = ["", f"m.encoder.layer.{number}.attention", "op"]
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(scopes)
    return graph


def kernels(profile: int | None = None) -> tuple[Kernel, ...]:
    return tuple(k for k in _kernels.parse_kernels(LOG) if profile is None or k.profile == profile)


def modules(graph: Graph) -> dict[str, str]:
    return {_kernels.node_name(node): module_path(node) for node in graph.model.graph}


def named(name: str) -> Kernel:
    return next(k for k in kernels() if k.name.startswith(name))


def test_reads_every_part_of_a_line() -> None:
    attention = named("_gemm_mha_v2")
    assert attention.type == "kgen"
    assert attention.tactic.startswith("_gemm_mha_v2_0x")
    assert attention.onnx_nodes == ("node_c0_0", "node_p_0", "node_p32_0", "node_m_0", "node_s32_0", "node_s_0")
    assert Tensor("mask", (-1, 1, 1, -1), "Float") in attention.inputs
    assert attention.dtype == "Half"
    assert attention.constants == ()
    assert attention.outputs == (Tensor("__mye16929_myl0", (-1, -1, 32), "Half"),)
    assert all(kernel.outputs for kernel in kernels() if not kernel.host)
    merged = named("node_v0_0+node_k0_0+node_q0_0")
    weight = merged.constants[0]
    assert (weight.dims, weight.dtype, weight.nbytes) == ((3, WIDTH, WIDTH), "Half", 3 * WIDTH * WIDTH * 2)
    assert Tensor("x", (-1, 4), "Float").nbytes == 0


def test_reads_the_spelling_of_the_engine_inspector() -> None:
    """TensorRT 10 spells the type `Format/Datatype`, and separates the nodes by a control character."""
    line = (
        "Name: k, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [1,2], Format/Datatype: Half }], "
        "Outputs: [ { Name: b, Dimensions: [1,2], Format/Datatype: Row major linear FP32 }], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: n[0]]\x1e[ONNX Layer: m]"
    )
    (kernel,) = _kernels.parse_kernels(line)
    assert kernel.inputs == (Tensor("a", (1, 2), "Half"),)
    assert [(tensor.name, tensor.dims) for tensor in kernel.outputs] == [("b", (1, 2))]
    assert kernel.onnx_nodes == ("n[0]", "m")


def test_a_kernel_has_the_type_it_writes() -> None:
    line = next(line for line in LOG.splitlines() if line.startswith("Name: __myl_FcAdd_myl0_8"))
    before, after = line.split("Outputs: ")
    (kernel,) = _kernels.parse_kernels(f"{before}Outputs: {after.replace('Datatype: Half', 'Datatype: Float')}")
    assert {tensor.dtype for tensor in kernel.inputs} == {"Half"} and kernel.dtype == "Float"


def test_a_tensor_that_cannot_be_read_is_an_error() -> None:
    """Not a tensor fewer: bytes and types are summed and judged over all of them."""
    lines = LOG.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("Name: _gemm_mha_v2_myl0_7"))
    lines[at] = lines[at].replace("Datatype: Float", "Precision: Float")
    with pytest.raises(BuildFailed, match=r"read 3 of 4 tensors .*Name: __mye15785_myl0"):
        _kernels.parse_kernels("\n".join(lines))


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(BuildFailed, match="lists no engine layers"):
        _kernels.parse_kernels("[INFO] Engine generation completed in 1.2 seconds.\n")


def test_host_work_is_not_a_kernel() -> None:
    assert {k.type for k in kernels() if k.host} == {"shape_call", "reshape", "cast", "signal", "wait", "copy"}
    assert {k.type for k in kernels() if not k.host} == {"kgen", "gemm", "runtime_fusion"}
    assert not dataclasses.replace(named("_gemm_mha_v2"), type="cast").host


def test_layers_of_one_region_serve_one_profile() -> None:
    """Only layers named after ONNX nodes say `[profile 1]`; the suffix is no part of the name."""
    first = [k for k in kernels(0) if not k.host]
    second = [k for k in kernels(1) if not k.host]
    assert (len(first), len(second)) == (12, 10)
    assert not any("profile" in k.name for k in second)


def test_counts_kernels_by_transformer_layer() -> None:
    counts = _kernels.kernels_per_layer(kernels(0), modules(encoder()))
    assert counts == {"layers": [5, 5], "rest": 2}  # the rest: a transpose before and one after
    rows = _kernels.kernel_rows(kernels(0), modules(encoder()))
    assert len(rows) == 12
    assert [r["layer"] for r in rows].count("m.encoder.layer.1") == 5
    assert rows[2]["name"].startswith("_gemm_mha_v2")
    assert rows[2] | {"name": ""} == {
        "name": "",
        "type": "kgen",
        "dtype": "Half",
        "layer": "m.encoder.layer.0",
        "onnx_nodes": ["node_c0_0", "node_p_0", "node_p32_0", "node_m_0", "node_s32_0", "node_s_0"],
        "profile": 0,
    }


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("m.encoder.layer.3.attention.self", ("m.encoder.layer", 3)),
        ("0.auto_model.encoder.layer.11", ("0.auto_model.encoder.layer", 11)),
        ("transformer.h.0.attn", ("transformer.h", 0)),
        ("model.layers.2", ("model.layers", 2)),
        ("feature_extractor.conv_layers.0.conv", None),
        ("0.pooler", None),
        ("", None),
    ],
)
def test_finds_the_layer_in_a_module_path(module: str, layer: tuple[str, int] | None) -> None:
    assert _kernels.layer_of(module) == layer


def test_every_gemm_is_proven_half() -> None:
    assert _kernels.check_gemms(encoder(), kernels(), "fp16") == {"total": 16, "half": 16}


def test_a_float32_graph_is_asked_nothing() -> None:
    assert _kernels.check_gemms(encoder("float"), kernels(), "fp32") == {"total": 16, "half": 0}
    with pytest.raises(BuildFailed, match="fp16 was requested, but all 16 GEMMs of the graph are float32"):
        _kernels.check_gemms(encoder("float"), kernels(), "fp16")


def in_float(kernel: Kernel) -> Kernel:
    """The kernel with its half tensors in float, as a builder that ignores the types would make it."""

    def cast(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(dataclasses.replace(t, dtype="Float") if t.dtype == "Half" else t for t in tensors)

    return dataclasses.replace(kernel, inputs=cast(kernel.inputs), constants=cast(kernel.constants), outputs=cast(kernel.outputs))


@pytest.mark.parametrize(
    ("kernel", "gemms"),
    [
        ("node_v0_0+", ("node_q0_0", "node_k0_0", "node_v0_0")),
        ("_gemm_mha_v2", ("node_s_0", "node_c0_0")),
        ("__myl_FcAdd_", ("node_o_0",)),
        ("__myl_FcAddDivCastErfCast", ("node_f_0",)),
    ],
)
@pytest.mark.parametrize("profile", [0, 1])
def test_one_float_kernel_of_one_profile_is_caught(kernel: str, gemms: tuple[str, ...], profile: int) -> None:
    listed = list(kernels())
    place = next(i for i, k in enumerate(listed) if k.profile == profile and k.name.startswith(kernel))
    listed[place] = in_float(listed[place])
    with pytest.raises(BuildFailed, match=f"{len(gemms)} of 16 GEMMs are Float") as caught:
        _kernels.check_gemms(encoder(), listed, "fp16")
    assert all(f"{name} (m.encoder.layer.0.attention)" in str(caught.value) for name in gemms)


def test_a_half_type_other_than_the_one_asked_for_is_caught() -> None:
    listed = [
        dataclasses.replace(k, inputs=tuple(dataclasses.replace(t, dtype="BFloat16") for t in k.inputs), constants=())
        for k in kernels()
    ]
    with pytest.raises(BuildFailed, match="16 of 16 GEMMs are Float"):
        _kernels.check_gemms(encoder(), listed, "fp16")


def test_a_gemm_that_one_profile_does_not_name_is_caught() -> None:
    listed = [k for k in kernels() if not (k.profile == 1 and "node_d_1" in k.onnx_nodes)]
    with pytest.raises(BuildFailed, match=r"no engine layer names 1 of 16 GEMMs.*node_d_1"):
        _kernels.check_gemms(encoder(), listed, "fp16")


def nameless(node: str, *, dtype: str = "Half", sizes: tuple[int, ...] = (1, WIDTH, 4 * WIDTH)) -> list[Kernel]:
    """The layers with those of one GEMM as TensorRT-RTX lists a 1x1 convolution that it made a product: without a node."""
    plain = [dataclasses.replace(k, onnx_nodes=tuple(n for n in k.onnx_nodes if n != node)) for k in kernels()]
    read, held = (Tensor("some_myl0", (-1, WIDTH), dtype),), (Tensor("c", sizes, dtype),)
    made = [Kernel(f"__myl_FcAdd_myl{p}_9", "runtime_fusion", read, (), held, "", (), p) for p in (0, 1)]
    return plain + made


def test_a_layer_without_names_is_told_by_the_weights_it_holds() -> None:
    assert _kernels.check_gemms(encoder(), nameless("node_f_1"), "fp16")["half"] == 16
    with pytest.raises(BuildFailed, match=r"1 of 16 GEMMs are Float.*node_f_1"):
        _kernels.check_gemms(encoder(), nameless("node_f_1", dtype="Float"), "fp16")
    with pytest.raises(BuildFailed, match=r"no engine layer names 1 of 16 GEMMs.*node_f_1"):
        _kernels.check_gemms(encoder(), nameless("node_f_1", sizes=(1, WIDTH, WIDTH)), "fp16")


def test_a_layer_without_names_is_told_by_what_it_reads() -> None:
    half = [k for k in nameless("node_f_1", sizes=(4 * WIDTH, WIDTH // 2)) if k.onnx_nodes]
    halves = tuple(Tensor(f"c{i}", (1, 4 * WIDTH, WIDTH // 2), "Half") for i in (0, 1))
    for name, proven in (("h_1.1_myl0", True), ("h_1_myl0", True), ("h_10_myl0", False), ("other", False)):
        read = (Tensor(name, (-1, WIDTH), "Half"),)
        listed = [*half, *(Kernel(f"__myl_Slic_myl{p}_9", "kgen", read, (), halves, "", (), p) for p in (0, 1))]
        if proven:
            assert _kernels.check_gemms(encoder(), listed, "fp16")["half"] == 16
            continue
        with pytest.raises(BuildFailed, match="no engine layer names"):
            _kernels.check_gemms(encoder(), listed, "fp16")


@pytest.mark.parametrize(
    ("before", "kept"),
    [("c = Conv (x, w)", 1), ("c = Conv (x, w, k)", 1), ("c = Relu (x)", 2), ("c = Conv (x, w) d = Relu (c)", 1)],
)
def test_of_a_batch_normalisation_one_factor_and_one_shift_are_left(before: str, kept: int) -> None:
    """In numbers a channel: after a convolution the shift alone, which is its bias where it has one."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[B,8,9] x) => (float[B,8,9] y)
    {{ {before} y = BatchNormalization (c, s, b, m, v) }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"w": (8, 8, 1)} if "w" in before else {}
    for name, shape in (shapes | ({"k": (8,)} if ", k)" in before else {}) | dict.fromkeys("sbmv", (8,))).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.random(shape).astype(np.float32), name))
    wanted = 4 * (8 * 8 * ("w" in before) + 8 * (kept + ("Relu (c)" in before)))
    assert _weights.expected_bytes(Graph(ir.from_proto(model))) == wanted


def test_all_weights_are_there() -> None:
    wanted = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH + 4 * WIDTH) * 2
    assert _weights.expected_bytes(encoder()) == wanted
    stored = _weights.stored_bytes(LOG)
    assert stored is not None
    facts = _weights.check_constants(encoder(), kernels(), stored)
    assert facts["initializer_bytes"] == wanted <= facts["constant_bytes"] < wanted * 1.01


def test_constants_are_not_added_up_over_profiles() -> None:
    assert _weights.constant_bytes(kernels()) == _weights.constant_bytes(kernels(0)) == _weights.constant_bytes(kernels(1))


def test_weights_lost_from_the_list_or_from_the_store_are_caught() -> None:
    stored = _weights.stored_bytes(LOG) or 0
    short = [dataclasses.replace(k, constants=()) if k.name.startswith("__myl_FcAddDiv") else k for k in kernels()]
    with pytest.raises(BuildFailed, match=r"weights, the engine \d+ \(\d\d\.\d%\): weights were dropped"):
        _weights.check_constants(encoder(), short, stored)
    with pytest.raises(BuildFailed, match="weights were dropped"):
        _weights.check_constants(encoder(), kernels(), stored // 2)


def test_what_a_builder_may_rightly_drop_is_not_expected() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (int64[b] ids, float[b, 64] x) => (float[b, 64] y) {
        one = Constant<value = int64[1] {3}>()
        row = Gather(table, one)
        a = Gather(words, ids)
        r = Gather(read, ids) s = Concat<axis = -1>(r, r) t = QuantizeLinear(s, scale) u = DequantizeLinear(t, scale)
        v = MatMul(u, tall)
        wide = Cast<to = 1>(narrow)
        c = MatMul(x, wide) d = Add(c, zeros) e = Add(d, row) w = Add(e, v) f = Add(w, a)
        h = Cast<to = 10>(shrinks) i = Cast<to = 10>(f) j = MatMul(i, h) k = Cast<to = 1>(j)
        l = MatMul(k, twin_a) m = MatMul(l, twin_b) n = Add(m, bias) o = Mul(factor, n) y = Add(o, shift)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.normal(size=(512, 64)).astype("float32"),  # read at a constant place
        "words": rng.normal(size=(8, 64)).astype("float32"),  # 2048
        "read": rng.normal(size=(8, 64)).astype("float32"),  # quantised, all that is read of it: 512
        "scale": np.float32(0.1),
        "tall": rng.normal(size=(128, 64)).astype("float32"),  # 32768
        "narrow": rng.normal(size=(64, 64)).astype("float16"),  # 8192
        "shrinks": rng.normal(size=(64, 64)).astype("float32"),  # cast to half: 8192
        "zeros": np.zeros(64, "float32"),
        "unused": np.ones((512, 64), "float32"),
        "twin_a": np.eye(64, dtype="float32"),  # 16384
        "twin_b": np.eye(64, dtype="float32"),
        "bias": rng.normal(size=64).astype("float32"),  # 256
        "factor": rng.normal(size=(1, 64)).astype("float32"),  # one with the bias
        "shift": rng.normal(size=64).astype("float32"),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    graph = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert _weights.expected_bytes(graph) == 2048 + 512 + 32768 + 8192 + 8192 + 16384 + 256
