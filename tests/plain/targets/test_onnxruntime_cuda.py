"""The target onnxruntime-cuda: what it refuses and why, its table of kernels, its session's options, what is missing here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fused
import onnx
import onnx_ir as ir
import pytest

import bertc
from benchmarks import golden
from bertc import precision, targets
from bertc.core import errors, gpu_models, hash_file, machine
from bertc.graph.model import Graph, save_graph
from bertc.report import doctor
from bertc.targets import BuildRequest, onnxruntime_cuda
from bertc.targets._onnxruntime_cuda import kernels, placement, session


def parsed(body: str, inputs: str = "float16[B,S] x", output: str = "float16[B,S] y", opset: int = 20) -> Graph:
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> g ({inputs}) => ({output}) {{ {body} }}'
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))


def request(graph: Graph, folder: Path, mode: str = "fp16", sms: tuple[str, ...] = onnxruntime_cuda.DEFAULT_SMS) -> BuildRequest:
    save_graph(graph, folder / "graph.onnx")
    return BuildRequest(graph, folder / "graph.onnx", folder, mode, sms, ())


@pytest.mark.parametrize(
    ("sm", "image"), [("sm80", "sm80"), ("sm87", "sm86"), ("sm89", "sm89"), ("sm90", "sm90"), ("sm121", "sm120")]
)
def test_a_gpu_runs_code_of_its_own_major_version(sm: str, image: str) -> None:
    assert kernels.image_for(sm) == image and onnxruntime_cuda.why_not(sm) is None


@pytest.mark.parametrize("gpu", ["b200", "b300"])
def test_blackwell_of_data_centres_is_refused_with_the_reason(gpu: str) -> None:
    for ask in (
        lambda: targets.parse_spec(f"onnxruntime-cuda:{gpu}"),
        lambda: targets.target_for(gpu_models.get(gpu), "onnxruntime-cuda"),
    ):
        with pytest.raises(errors.RecipeError, match=r"machine code for sm75, .*sm120 and no PTX"):
            ask()


def test_one_file_serves_every_gpu_that_the_wheel_has_code_for() -> None:
    specs = {g.name: targets.target_for(g, "onnxruntime-cuda") for g in gpu_models.TABLE if kernels.image_for(g.sm)}
    assert {str(specs[name]) for name in ("a100", "h100", "h200", "l4", "rtx-5090", "gb10")} == {
        f"onnxruntime-cuda:{','.join(onnxruntime_cuda.DEFAULT_SMS)}"
    }
    assert str(specs["t4"]) == "onnxruntime-cuda:sm75"
    assert str(targets.target_for(gpu_models.get("h200"), "onnxruntime-cuda", per_sm=True)) == "onnxruntime-cuda:sm90"
    assert set(gpu_models.names()) - set(specs) == {"b200", "b300"}


@pytest.mark.parametrize("mode", ["int8", "int8-static", "int8-dynamic", "fp8"])
def test_what_has_no_gemm_is_refused(mode: str) -> None:
    why = targets.refusal(targets.parse_spec("onnxruntime-cuda"), mode)
    assert why and "no" in why and "GEMM" in why and "tensorrt" in why


def test_the_table_says_that_int8_gemms_are_missing() -> None:
    have = kernels.table()["kernels"]
    assert not {"::QLinearMatMul", "com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat"} & set(have)
    assert {"com.microsoft::MatMulNBits", "::DequantizeLinear"} <= set(have)


def test_a_new_table_is_new_code() -> None:
    """The cache of a fleet is keyed by code; SHA256 there changes with the table."""
    assert hash_file(kernels.TABLE) == kernels.SHA256


def test_bfloat16_is_refused_on_turing_alone() -> None:
    assert "Turing" in str(targets.refusal(targets.parse_spec("onnxruntime-cuda:sm75"), "bf16"))
    for mode in ("bf16", "fp16", "fp32", "int8-weights"):
        assert targets.refusal(targets.parse_spec("onnxruntime-cuda:sm80,sm90"), mode) is None


NO_KERNEL = {
    "Sinh": ("y = Sinh (x)", "no CUDA kernel of Sinh"),
    "DFT": ("a = Constant <value_ints = [1]> () y = Mish (x)", "no CUDA kernel of Mish"),
    "a type": ("y = InstanceNormalization (x, s, s)", "T=bfloat16"),
    "a version": ("y = InstanceNormalization (x, s, s)", "since opset 22"),
}


@pytest.mark.parametrize("case", NO_KERNEL)
def test_a_node_without_a_kernel_fails_the_build_and_is_named(case: str, tmp_path: Path) -> None:
    body, said = NO_KERNEL[case]
    kind, opset = ("bfloat16" if case == "a type" else "float16"), (22 if case == "a version" else 20)
    graph = parsed(body, f"{kind}[B,S,4] x, {kind}[S] s", f"{kind}[B,S,4] y", opset)
    with pytest.raises(errors.BuildFailed, match=said) as caught:
        onnxruntime_cuda.build(request(graph, tmp_path))
    assert "1 node without" in str(caught.value) and caught.value.exit_code == 1
    assert not (tmp_path / "model.onnx").exists()


def test_a_branch_is_looked_into() -> None:
    branches = (
        "then_branch = t () => (float16[B,S] p) { p = Sinh (x) }",
        "else_branch = e () => (float16[B,S] q) { q = Relu (x) }",
    )
    head = "c = Constant <value_ints = [1]> () b = Cast <to = 9> (c) k = Squeeze (b)"
    graph = parsed(f"{head} y = If (k) <{', '.join(branches)}>")
    with pytest.raises(errors.BuildFailed, match="Sinh"):
        placement.require_kernels(graph)


def test_arithmetic_on_shapes_may_be_on_the_cpu_and_is_named() -> None:
    """There is no CUDA kernel of BitwiseAnd; the same operator on what the graph is fed fails."""
    shape = "n = Shape (x) m = Constant <value_ints = [7]> () k = BitwiseAnd (n, m) y = Expand (x, k)"
    found = placement.require_kernels(parsed(shape))
    assert [name.split()[0] for name in found.on_cpu] == ["BitwiseAnd"] and found.cuda == 2
    with pytest.raises(errors.BuildFailed, match="BitwiseAnd"):
        placement.require_kernels(parsed("y = BitwiseAnd (x, x)", "int64[B,S] x", "int64[B,S] y"))


def test_a_kernel_of_com_microsoft_is_found_by_its_types() -> None:
    body = "y = com.microsoft.{} (x, b)"
    ok = parsed(body.format("BiasGelu"), "float16[B,4] x, float16[4] b")
    assert placement.require_kernels(ok).cuda == 1
    (node,) = parsed(body.format("NoSuchThing"), "float16[B,4] x, float16[4] b").model.graph
    assert "no CUDA kernel of com.microsoft.NoSuchThing" in str(kernels.why_no_kernel(node, 20))


def test_an_open_kernel_is_for_the_version_it_was_written_for() -> None:
    """ONNX Runtime's own rule, seen with wav2vec2 in bf16: InstanceNormalization of opset 22 went to the CPU."""
    rows = kernels.table()["kernels"]["::InstanceNormalization"]
    assert {(first, last) for first, last, _ in rows} == {(6, kernels.OPEN)}
    for opset, expected in ((20, True), (21, True), (22, False)):
        (node,) = parsed("y = InstanceNormalization (x, s, s)", "float[B,S,4] x, float[S] s", "float[B,S,4] y", opset).model.graph
        assert (kernels.why_no_kernel(node, opset) is None) == expected


def test_what_lacks_a_bfloat16_kernel_is_an_island_that_says_so() -> None:
    lowered = onnxruntime_cuda.lower(fused.encoder())
    typed = precision.get("bf16").apply(lowered, kernels=onnxruntime_cuda.KERNELS)
    islands = {island.op: island.reason for island in typed.plan.islands}
    assert "T=bfloat16" in islands["EmbedLayerNormalization"] and "Attention" not in islands
    assert placement.require_kernels(typed.graph).on_cpu == ()


def test_half_precision_has_no_islands_in_the_layers() -> None:
    typed = precision.get("fp16").apply(onnxruntime_cuda.lower(fused.encoder()), kernels=onnxruntime_cuda.KERNELS)
    assert typed.plan.islands == () and typed.plan.casts == 1, "of the output alone"
    (clamp,) = typed.plan.clamps
    assert clamp.now == -3e4, "the mask goes through Expand to the bias of an Attention"


def test_a_constant_that_is_no_bias_of_scores_is_no_mask() -> None:
    """Input 5 of Attention is added to scores; its weights are not."""
    graph = onnxruntime_cuda.lower(fused.encoder(layers=1))
    weight = next(node for node in graph.model.graph if node.op_type == "Attention").inputs[1]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0, 0] = -1e6
    weight.const_value = ir.tensor(array, name=weight.name)
    plan = precision.get("fp16").apply(graph, kernels=onnxruntime_cuda.KERNELS).plan
    assert [clamp.constant for clamp in plan.clamps if clamp.constant == weight.name] == []
    assert any(island.op == "Attention" and "outside fp16" in island.reason for island in plan.islands)


def test_a_build_says_what_it_made_and_what_it_asks_for(tmp_path: Path) -> None:
    onnx.save(golden.read(golden.FOLDER / "bert.dynamo-sdpa.onnxtxt"), tmp_path / "bert.onnx")
    (made,) = bertc.build(str(tmp_path / "bert.onnx"), tmp_path / "out", targets=["onnxruntime-cuda:sm90=fp16"])
    manifest = json.loads((made.path / "manifest.json").read_text("utf-8"))
    ops = manifest["graph"]["ops"]
    assert ops["com.microsoft.Attention"] == 2 and ops["com.microsoft.SkipLayerNormalization"] == 4
    assert manifest["engine"]["session"] == dict(session.SESSION) and manifest["engine"]["placement"]["cpu"] == []
    assert manifest["target"] == {"name": "onnxruntime-cuda", "sms": ["sm90"]}
    report = json.loads((made.path / "report.json").read_text("utf-8"))
    said = json.dumps(report)
    assert "have a CUDA kernel in onnxruntime-gpu" in said and "wants a length of 8" in said


def test_loading_without_the_package_or_a_gpu_names_both(tmp_path: Path) -> None:
    with pytest.raises(errors.Missing, match=r"onnxruntime-gpu is not installed.*no NVIDIA GPU found.*bertc\[gpu\]"):
        onnxruntime_cuda.load(tmp_path, {})


@dataclasses.dataclass
class Machine:
    installed: dict[str, str]
    gpus: tuple[tuple[str, str], ...]


MACHINES = {
    "the wheel alone": (Machine({"onnxruntime-gpu": "1.31.1"}, ()), (True, False), "no NVIDIA GPU"),
    "all of it": (Machine({"onnxruntime-gpu": "1.31.1"}, (("NVIDIA H100", "sm90"),)), (True, True), ""),
    "a B200": (Machine({"onnxruntime-gpu": "1.31.1"}, (("NVIDIA B200", "sm100"),)), (True, False), "no PTX"),
    "the CPU's": (Machine({"onnxruntime": "1.31.1"}, (("NVIDIA H100", "sm90"),)), (True, False), "uninstall that first"),
    "both": (
        Machine({"onnxruntime": "1", "onnxruntime-gpu": "1"}, (("NVIDIA H100", "sm90"),)),
        (False, False),
        "own the same folder",
    ),
    "nothing": (Machine({}, ()), (False, False), "onnxruntime-gpu is not installed; no NVIDIA GPU"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_doctor_says_which_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has is given, as no machine has all of these."""
    found, able, said = MACHINES[name]
    monkeypatch.setattr(machine, "installed_version", lambda package: found.installed.get(package))
    monkeypatch.setattr(machine, "gpus", lambda: found.gpus)
    row = doctor.examine_machine()["targets"]["onnxruntime-cuda"]
    assert (row["build"], row["run"]) == able and said in row["reason"]
    assert row["install"] == "pip install 'bertc[gpu]'"


OPTIONS: dict[str, tuple[Any, str]] = {
    "gpu_mem_limit": (-1, "a whole number from 0"),
    "cuda_graphs": (True, "a whole number from 0"),
    "device_id": ("0", "a whole number from 0"),
    "arena_extend_strategy": ("kSameAsRequestd", "did you mean 'kSameAsRequested'"),
    "graph_optimization_level": (None, "ORT_ENABLE_ALL"),
    "providers": (["CPUExecutionProvider"], "target onnxruntime for the CPU"),
    "gpu_memory": (1, "no option"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_a_manifest_that_is_none_is_named(option: str, tmp_path: Path) -> None:
    value, said = OPTIONS[option]
    with pytest.raises(errors.ArtifactError, match=said):
        session.checked_options({option: value}, tmp_path)


def test_options_become_those_of_the_provider(tmp_path: Path) -> None:
    plain = session.provider_options(session.checked_options({}, tmp_path))
    assert "gpu_mem_limit" not in plain and "enable_cuda_graph" not in plain and plain["use_tf32"] == "0"
    made = session.provider_options(session.checked_options({"gpu_mem_limit": 2**30, "cuda_graphs": 4, "device_id": 1}, tmp_path))
    assert (made["gpu_mem_limit"], made["enable_cuda_graph"], made["device_id"]) == (str(2**30), "1", "1")
