"""onnxruntime-gpu itself, over stand-ins of the CUDA libraries: its kernels are those of the table, its partition is all CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bertc
from benchmarks import bench_placement, golden, ort_gpu
from bertc.targets._onnxruntime_cuda import kernels, placement

SITE = ort_gpu.site()
pytestmark = pytest.mark.skipif(SITE is None, reason=ort_gpu.HOW)

FAMILIES = (
    "bert.dynamo-sdpa",
    "distilbert.dynamo-sdpa",
    "modernbert.dynamo-sdpa",
    "nomic-bert.dynamo-sdpa",
    "mpnet.dynamo-eager",
    "deberta-v2.dynamo-eager",
    "t5-encoder.dynamo-sdpa",
    "wav2vec2.dynamo-sdpa",
    "wavlm.dynamo-eager",
    "bart-decoder.dynamo-sdpa",
    "xlm-roberta.torchscript-eager",
    "gpt2-past.dynamo-sdpa",
    "own.dynamo-sdpa",
)


def site() -> Path:
    assert SITE is not None
    return SITE


def test_the_committed_table_is_the_library_s_own() -> None:
    found = ort_gpu.kernels(site())
    if found["onnxruntime"] != kernels.table()["onnxruntime"]:
        pytest.skip(f"the table is of {kernels.table()['onnxruntime']}, the folder holds {found['onnxruntime']}")
    assert json.loads(json.dumps(found)) == kernels.table()


def test_the_library_has_machine_code_for_the_sms_of_the_target_and_no_ptx() -> None:
    sms, ptx = ort_gpu.images(site())
    assert tuple(f"sm{number}" for number in sms) == kernels.sms() and ptx == []


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_on_cuda(family: str, mode: str, tmp_path: Path) -> None:
    """What is on the CPU is arithmetic on shapes, and the table saw no node without a kernel where the library sees one."""
    path = next(path for path in golden.FOLDER.glob(f"{family}.onnxtxt*"))
    made = bench_placement.family(path, tmp_path / "made", mode)
    (found,) = ort_gpu.place(site(), made[bench_placement.CUDA])
    assert set(found["providers"].get("CPU", {})) <= placement.ARITHMETIC
    assert found["without_kernel"] == [] and found["memcpy"] == 0
    (before,) = ort_gpu.place(site(), made[bench_placement.CPU])
    assert found["nodes"] < before["nodes"]


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_the_transforms_of_fnet_run_on_cuda_without_a_copy(mode: str, tmp_path: Path) -> None:
    """The matrix of a dynamic length, too: only the length itself is on the CPU."""
    made = bench_placement.family(next(golden.FOLDER.glob("fnet.dynamo*")), tmp_path / "made", mode)
    (found,) = ort_gpu.place(site(), made[bench_placement.CUDA])
    assert set(found["providers"]["CPU"]) == {"Squeeze"} and found["memcpy"] == 0 and found["without_kernel"] == []


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "modernbert", "t5-encoder", "nomic-bert", "gpt2"])
def test_a_packed_family_runs_on_cuda_without_a_copy(family: str, tmp_path: Path) -> None:
    path = next(path for path in golden.FOLDER.glob(f"{family}.dynamo*"))
    (found,) = ort_gpu.place(site(), bench_placement.packed(path, tmp_path))
    assert set(found["providers"].get("CPU", {})) <= placement.ARITHMETIC
    assert found["memcpy"] == 0 and found["ops"].keys() & {"PackedAttention", "PackedMultiHeadAttention"}


def test_packed_minilm_is_seven_nodes_a_layer_and_has_no_copy(tmp_path: Path) -> None:
    (made,) = bertc.build("minilm", tmp_path / "out", targets=["onnxruntime-cuda=fp16"], packed=True)
    (found,) = ort_gpu.place(site(), made.path / "model.onnx")
    assert found["nodes"] <= 76 and found["memcpy"] == 0 and set(found["providers"]["CPU"]) == {"Concat"}
    layers = {"PackedAttention": 6, "MatMul": 18, "BiasGelu": 6, "SkipLayerNormalization": 12}
    assert {op: found["ops"][op] for op in layers} == layers


def test_minilm_is_sixty_nodes_seven_a_layer(tmp_path: Path) -> None:
    (made,) = bertc.build("minilm", tmp_path / "out", targets=["onnxruntime-cuda=fp16"])
    (found,) = ort_gpu.place(site(), made.path / "model.onnx")
    assert found["nodes"] <= 60 and found["memcpy"] == 0 and set(found["providers"]["CPU"]) == {"Concat"}
    layers = {"Attention": 6, "MatMul": 18, "BiasGelu": 6, "SkipLayerNormalization": 12}
    assert {op: found["ops"][op] for op in layers} == layers
