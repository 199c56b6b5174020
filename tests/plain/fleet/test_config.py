"""fleet.toml: the matrix, the table of GPU models, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import fleets
import pytest
import tiny

from bertc import targets
from bertc.cli import _main as cli
from bertc.core import gpu_models
from bertc.core.errors import RecipeError
from bertc.fleet import ci, config


def read(folder: Path, text: str, models: str = "a") -> config.Fleet:
    return config.read(fleets.write(folder, models, text))


def names(fleet: config.Fleet) -> list[str]:
    return [entry.name for entry in fleet.entries]


def test_gpu_models_that_share_a_plan_are_one_entry(tmp_path: Path) -> None:
    fleet = read(tmp_path, 'gpus = ["l4", "a10", "rtx-4090", "rtx-pro-6000", "t4", "h100"]\nprecisions = ["fp16"]\n')
    assert {e.name: e.gpus for e in fleet.entries} == {
        "a/tensorrt-rtx-fp16": ("l4", "a10", "rtx-4090", "rtx-pro-6000"),
        "a/tensorrt-rtx-sm75-fp16": ("t4",),
        "a/h100-fp16": ("h100",),
    }
    assert [e.host for e in fleet.entries] == [None, None, "h100"]
    assert fleet.entries[0].spec.sms == ("sm86", "sm89", "sm120", "sm121")


def test_a_plan_for_each_sm_and_a_target_by_name(tmp_path: Path) -> None:
    fleet = read(tmp_path, 'gpus = ["l4", "l40s", "a10", "l4/tensorrt"]\nper_sm = true\nprecisions = ["fp16"]\n')
    assert {e.name: e.gpus for e in fleet.entries} == {
        "a/tensorrt-rtx-sm89-fp16": ("l4", "l40s"),
        "a/tensorrt-rtx-sm86-fp16": ("a10",),
        "a/l4-fp16": ("l4",),
    }


@pytest.mark.parametrize("name", "l4 a10 l40s rtx-4090 rtx-pro-6000 a100 h100 h200 b200 t4".split())
def test_every_gpu_model_has_a_target_that_knows_its_sm(name: str) -> None:
    gpu = gpu_models.get(name)
    spec = targets.target_for(gpu)
    assert spec.name == ("tensorrt-rtx" if gpu.sm in ("sm75", "sm86", "sm89", "sm120", "sm121") else "tensorrt")
    assert not spec.sms or gpu.sm in spec.sms


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA Quantum", "NVIDIA Quantum"),
    ],
)
def test_the_name_that_a_driver_gives(told: str, name: str) -> None:
    assert gpu_models.named(told) == name
    assert sum(gpu.name == gpu_models.named(told) for gpu in gpu_models.TABLE) <= 1


def test_exclude_include_and_override(tmp_path: Path) -> None:
    text = """
        targets = ["null", "onnxruntime=fp32"]
        precisions = ["fp32", "bf16"]
        exclude = [{ model = "b", precision = "bf16" }]
        include = [{ model = "b", target = "null", precision = "fp16" }]
        override = [{ model = "b", budget = { cosine = 0.9 }, memory = "8 GB", cores = 2 }]
    """
    fleet = read(tmp_path, text, "ab")
    assert names(fleet) == [
        "a/null-fp32",
        "a/null-bf16",
        "a/onnxruntime-fp32",
        "b/null-fp32",
        "b/onnxruntime-fp32",
        "b/null-fp16",
    ]
    a, b = fleet.entries[0], fleet.entries[-1]
    assert (dict(b.recipe.budget), b.memory, b.cores) == ({"cosine": 0.9}, 8 * 10**9, 2)
    assert (dict(a.recipe.budget), a.memory, a.cores) == ({}, None, 1)
    assert names(config.select(fleet, ["b/null-fp16", "a"])) == [*names(fleet)[:3], "b/null-fp16"]


def test_what_cannot_be_built_says_how_to_leave_it_out(tmp_path: Path) -> None:
    text = 'gpus = ["t4", "l4"]\nprecisions = ["fp32", "fp16"]\n'
    with pytest.raises(RecipeError, match="a for t4: fp32 on sm75"):
        read(tmp_path, text)
    fleet = read(tmp_path, text + 'exclude = [{ gpu = "t4", precision = "fp32" }]\n')
    assert sorted(names(fleet)) == ["a/tensorrt-rtx-fp16", "a/tensorrt-rtx-fp32", "a/tensorrt-rtx-sm75-fp16"]
    assert "a/t4-fp32" in names(read(tmp_path, 'gpus = ["t4/tensorrt"]\nprecisions = ["fp32"]\n'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('gpus = ["rtx-4900"]\nprecisions = ["fp16"]', "unknown GPU model 'rtx-4900'; did you mean 'rtx-4090'"),
        ('targets = ["nul"]\nprecisions = ["fp16"]', "unknown target 'nul'"),
        ('targets = ["null"]\nprecisions = ["fp61"]', "unknown precision"),
        ('target = ["null"]', "unknown key 'target'; did you mean 'targets'"),
        ('targets = ["tensorrt"]\nprecisions = ["fp16"]', "builds for one GPU model"),
        ('gpus = ["h100/tensorrt-rtx"]\nprecisions = ["fp16"]', "does not build for sm90"),
        ('targets = ["null=fp32"]\nexclude = [{ gpu = "l4" }]', "matches no entry"),
        ('targets = ["null=fp32"]\noverride = [{ opset = 21 }]', "unknown key 'opset'"),
        ('targets = ["null=fp32"]\noverride = [{ memory = "much" }]', "not an amount of memory"),
        ('targets = ["null=fp32"]\noverride = [{ budget = { cosin = 1 } }]', "unknown budget 'cosin'"),
        ('gpus = ["l4", "a10"]\nprecisions = ["fp16"]\noverride = [{ gpu = "l4", verify = false }]', "share the plan"),
        ('precisions = ["fp16"]', "describes nothing to build"),
        (
            'targets = ["null=fp32"]\nrunners = { h1000 = ["x"] }',
            "fleet.toml: .runners. has the unknown GPU model 'h1000'; did you mean 'h100'",
        ),
    ],
)
def test_mistakes_are_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        read(tmp_path, text + "\n")


def test_ci_jobs_build_exactly_their_entry_on_a_runner_that_can(tmp_path: Path) -> None:
    text = 'gpus = ["l4", "h100", "b200"]\nprecisions = ["fp16"]\nrunners = { h100 = ["self-hosted", "hopper"] }\n'
    fleet = read(tmp_path, text)
    github = ci.jobs(fleet, "github")["include"]
    assert [job["entry"] for job in github] == names(fleet)
    assert [job["runs-on"] for job in github] == [["ubuntu-latest"], ["self-hosted", "hopper"], ["self-hosted", "gpu", "b200"]]
    gitlab = ci.jobs(fleet, "gitlab")
    assert gitlab["a h100-fp16"]["tags"] == ["self-hosted", "hopper"]
    assert "tags" not in gitlab["a tensorrt-rtx-fp16"]
    assert all(
        f"--entry {name}" in line for name, job in zip(names(fleet), gitlab.values(), strict=True) for line in job["script"]
    )


def test_one_default_plan_is_what_the_target_says() -> None:
    assert targets.target_for(gpu_models.get("l4")) == targets.parse_spec("tensorrt-rtx")


def test_an_adapter_beside_the_fleet_is_part_of_the_source(tmp_path: Path) -> None:
    """By its files and not by its path: the same adapter elsewhere is the same."""
    from bertc.fleet import keys
    from bertc.recipe import Recipe

    for name in ("base", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("config.json" if name == "base" else "adapter_config.json")).write_text("{}")
    recipe = Recipe(str(tmp_path / "base"), adapter=str(tmp_path / "lora"))
    paths, _ = keys.source_paths(recipe)
    assert set(paths) == {"config.json", "adapter/adapter_config.json"}
    assert "adapter" not in keys.options("export", recipe, targets.parse_spec("null"))
    text = '[models.b]\nsource = "base"\nadapter = "lora"\n'
    (tmp_path / "fleet.toml").write_text('gpus = ["l4"]\nprecisions = ["fp16"]\n' + text)
    assert config.read(tmp_path / "fleet.toml").models["b"].adapter == str(tmp_path / "lora")


def test_an_onnx_source_is_the_files_it_is_read_from(tmp_path: Path) -> None:
    """Its external data and its tokenizer change it; what else lies in the folder does not, large or not."""
    from bertc.core import hash_file
    from bertc.fleet import keys
    from bertc.recipe import Recipe

    path = tiny.encoder(tmp_path / "m.onnx", tokenizer=True, external=True)
    tiny.encoder(tmp_path / "other.onnx")
    for name in ("notes.txt", "training.csv", "weights-of-another.bin"):
        (tmp_path / name).write_text("anything")
    recipe = Recipe(str(path))
    before = keys.source_files(recipe, hash_file)
    assert set(before) == {"m.onnx", "w.bin", "tokenizer.json"}
    (tmp_path / "notes.txt").write_text("another thing")
    assert keys.source_files(recipe, hash_file) == before
    (tmp_path / "tokenizer.json").write_text("{}")
    assert keys.source_files(recipe, hash_file) != before


def test_the_plan_of_a_source_that_is_not_there_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fleets.write(tmp_path, "ab")
    assert cli.run(["fleet", "plan", str(path)]) == 0
    (tmp_path / "a" / "m.onnx").unlink()
    capsys.readouterr()
    assert cli.run(["fleet", "plan", str(path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert "no file or folder at" in err and json.loads(out)["entries"]
    assert cli.run(["fleet", "plan", str(path), "--entry", "b"]) == 0
    (tmp_path / "b" / "m.onnx").write_bytes(b"no model")
    assert cli.run(["fleet", "plan", str(path), "--entry", "b"]) == 2
