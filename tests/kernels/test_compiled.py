"""Every kernel compiled for every SM, without a GPU: ptxas takes it, nothing spills, and TensorRT can start it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertc.plugins.kernels import _launch, _ptx, launches

SMS = (80, 86, 89, 90, 100, 120)
MATMULS = ("packed_attention", "conv1d_gelu", "conv1d_layernorm_gelu")
CORES = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
NAMES = (
    "bias_gelu conv1d_gelu conv1d_groupnorm_gelu conv1d_layernorm_gelu conv1d_statistics embeddings packed_attention "
    "remove_padding restore_padding skip_layernorm"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_for_an_sm(name: str, sm: int, folder: Path) -> None:
    launch = launches()[name]
    kernel = _ptx.compile_example(launch, "", sm, folder=folder)
    assert kernel.spilled == 0 and kernel.stack == 0 and kernel.registers <= 255
    assert kernel.instructions["local"] == 0 and 40 < kernel.instructions["all"] < 8000
    assert kernel.architecture == f"sm_{sm}" + "a" * (sm >= 90)
    assert kernel.runs_on == (f"sm{sm} only" if sm >= 90 else f"sm{sm} and newer")
    assert kernel.ptx_version == {89: "8.1", 100: "8.6", 120: "8.7"}.get(sm, "8.0")
    assert kernel.cubin.startswith(b"\x7fELF") and f".reqntid {kernel.threads}" in kernel.ptx
    there = [t.name for t in launch.tensors().values() if t.name not in launch.examples[""].absent]
    stated = ["u32" if each in launch.scalars else "u64" for each in launch.argument_names() if each in (*there, *launch.scalars)]
    assert [each[1:] for each in kernel.parameters] == [each[1:] for each in stated]
    assert all(not line.startswith((".file", "\t.file", "\t.loc")) for line in kernel.ptx.splitlines())
    assert os.sep + "plugins" not in kernel.ptx and "kernels" not in kernel.ptx
    if name in MATMULS:
        assert kernel.instructions[CORES[sm]], kernel.instructions
    if name not in MATMULS and not name.startswith("conv"):
        assert not any(kernel.instructions[each] for each in _ptx.TENSOR_CORES)


@pytest.mark.parametrize("sm", [86, 100])
def test_other_examples_do_not_spill(sm: int, folder: Path) -> None:
    for launch in launches().values():
        for example in [each for each in launch.examples if each and (each, sm) != ("fp8", 86)]:
            kernel = _ptx.compile_example(launch, example, sm, folder=folder)
            assert kernel.spilled == 0, f"{launch.name} {example}"
            assert kernel.sm == sm


@pytest.mark.parametrize(("size", "bias"), [(16, False), (24, True), (72, False), (128, True)])
def test_attention_does_not_spill_at_sizes_between(size: int, bias: bool, folder: Path) -> None:
    shapes = {"qkv": (512, 3, 4, size), "cu_seqlens": (9,), "out": (512, 4, size)} | ({"bias": (4, 255)} if bias else {})
    for sm in (86, 120):
        kernel = _ptx.compile_launch(launches()["packed_attention"], sm, shapes, types={"x": "bf16", "id": "i64"}, folder=folder)
        assert kernel.spilled == 0 and kernel.instructions["mma"]


@pytest.mark.parametrize(("name", "example"), [("packed_attention", "d128"), ("conv1d_layernorm_gelu", "")])
def test_the_largest_have_a_variant_that_tensorrt_can_start(name: str, example: str, folder: Path) -> None:
    """Within 48 KiB of shared memory on sm100, where the first variant wants more."""
    from bertc.plugins.kernels._tensorrt import SHARED

    launch = launches()[name]
    variants = launch.fitting(launch.examples[example].dims)
    made = [_ptx.compile_example(launch, example, 100, variant=variant, folder=folder) for variant in variants]
    assert made[0].shared > SHARED
    assert any(each.shared <= SHARED and not each.spilled for each in made)


def test_float8_is_refused_before_sm89_with_the_reason() -> None:
    with pytest.raises(_launch.Unsupported, match="float8 needs sm89 or newer, not sm86; int8"):
        _ptx.compile_example(launches()["skip_layernorm"], "fp8", 86)
    with pytest.raises(_launch.Unsupported, match="not for sm75"):
        _ptx.compile_example(launches()["skip_layernorm"], "", 75)


@pytest.mark.parametrize("sm", [86, 90])
def test_the_same_ptx_from_another_folder_and_process(sm: int, tmp_path: Path) -> None:
    """Byte for byte, with another seed of Python's hashes, from a copy of the sources elsewhere."""
    import shutil

    import bertc.plugins

    shutil.copytree(bertc.plugins.__path__[0], tmp_path / "elsewhere" / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from plugins.kernels import _ptx, launches\n"
        "for name in ('skip_layernorm', 'packed_attention'):\n"
        f"    print(hashlib.sha256(_ptx.compile_example(launches()[name], '', {sm}).ptx.encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    here = [_ptx.compile_example(launches()[name], "", sm).ptx for name in ("skip_layernorm", "packed_attention")]
    assert done.stdout.split() == [hashlib.sha256(each.encode()).hexdigest() for each in here]


def test_what_is_kept_is_read_again_unless_damaged(tmp_path: Path) -> None:
    launch = launches()["remove_padding"]
    first = _ptx.compile_example(launch, "", 90, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    (kept / "kernel.json").write_text((kept / "kernel.json").read_text().replace('"registers": ', '"registers": 1'))
    assert _ptx.compile_example(launch, "", 90, folder=tmp_path).registers > first.registers  # read, not compiled
    for damage in ((kept / "kernel.ptx", "half"), (kept / "kernel.json", "{"), (kept / "kernel.json", "[]")):
        damage[0].write_text(damage[1])
        assert _ptx.compile_example(launch, "", 90, folder=tmp_path) == first
    others = [
        _ptx.compile_example(launch, "", 90, variant=1, folder=tmp_path),
        _ptx.compile_example(launch, "", 86, folder=tmp_path),
        _ptx.compile_launch(launch, 90, {"x": (9, 64), "index": (3,), "out": (3, 64)}, folder=tmp_path),
        _ptx.compile_launch(launch, 90, {"x": (9, 64), "index": (3,), "out": (3, 64)}, types={"x": "bf16"}, folder=tmp_path),
    ]
    assert len({first.key, *(each.key for each in others)}) == 5
    same = _ptx.compile_launch(launch, 90, {"x": (7, 64), "index": (2,), "out": (2, 64)}, folder=tmp_path)
    assert same.key == others[2].key  # rows are no constants


ENTRY = """.version 8.0
.visible .entry k(
	.param .u64 .ptr .global .align 16 k_param_0,
	.param .u32 k_param_1,
	.param .u64 .ptr .global .align 1 k_param_2,
	.param .u64 .ptr .global .align 1 k_param_3
)
.reqntid 128
{ ld.param.b64 %rd1, [k_param_0]; READ }
"""


def test_scratch_parameters_go_only_where_nothing_reads_them() -> None:
    ptx, types = _ptx.strip_scratch(ENTRY)
    assert types == ["u64", "u32"] and "k_param_1\n)" in ptx and "k_param_2" not in ptx and ".reqntid 128" in ptx
    with pytest.raises(_launch.Unsupported, match="k_param_3"):
        _ptx.strip_scratch(ENTRY.replace("READ", "ld.param.b64 %rd2, [k_param_3];"))
    with pytest.raises(_launch.Unsupported, match="no unused pointers"):
        _ptx.strip_scratch(ENTRY.replace("u64 .ptr .global .align 1 k_param_3", "u32 k_param_3"))


def test_instructions_are_counted_by_kind() -> None:
    sass = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.16816.F32 R4, R4, R8, RZ ;
        /*0030*/              @UP0 STL [R1], R4 ;
        /*0040*/                   HGMMA.64x32x16.F32 R24, gdesc[UR8], RZ ;
        /*0050*/                   NOP ;
    """
    counts = _ptx.count_instructions(sass)
    assert {kind: n for kind, n in counts.items() if n} == {"mma": 1, "wgmma": 1, "global loads": 1, "local": 1, "all": 5}


def test_a_launch_says_what_does_not_fit() -> None:
    known = launches()
    shapes = {"qkv": (5, 3, 2, 20), "cu_seqlens": (2,), "out": (5, 2, 20)}
    with pytest.raises(_launch.Unsupported, match="in steps of 8"):
        _ptx.compile_launch(known["packed_attention"], 90, shapes)
    with pytest.raises(_launch.Unsupported, match=r"H is 8 in other tensors and 9 in skip"):
        known["skip_layernorm"].dims({"x": (2, 8), "skip": (2, 9)}, {})
    with pytest.raises(_launch.Unsupported, match="T2 is 7"):
        known["conv1d_gelu"].dims({"x": (1, 1, 9), "w": (3, 1, 4), "out": (1, 4, 7)}, {"stride": 2})
    with pytest.raises(_launch.Unsupported, match="at most 8192"):
        known["skip_layernorm"].constants_of({"H": 10000, "R": 1}, {}, 0)
    with pytest.raises(_launch.Unsupported, match="missing \\['skip', 'y'\\]"):
        known["skip_layernorm"].check_present(("x", "gamma"))
    with pytest.raises(_launch.Unsupported, match="unknown attributes \\['eps'\\]"):
        known["skip_layernorm"].attributes_with({"eps": 1})
    with pytest.raises(_launch.Unsupported, match="65536 programs along z"):
        known["conv1d_gelu"].grid_of({"B": 65536, "T2": 9, "N": 8}, {"BT": 64, "BO": 64, "GROUPS": 1, "N": 8})
