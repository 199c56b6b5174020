"""The target onnxruntime-tensorrt: the graph that TensorRT takes, the options of its provider, what is missing here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import bertc
from benchmarks import golden
from bertc import targets
from bertc.core import TensorSpec, errors, gpu_models, profiles
from bertc.targets import onnxruntime_tensorrt
from bertc.targets._onnxruntime_cuda import tensorrt_options as options

IDS = [TensorSpec.from_json({"name": name, "dtype": "int64", "dims": ["batch", "length"]}) for name in ("ids", "mask")]
RANGES = profiles.profiles_from_json([{"batch": "1:8:32", "length": "16:128:512"}, {"batch": "1:1:1", "length": "8:16:32"}])


def test_an_artifact_is_the_graph_of_tensorrt_with_the_options_of_its_type(tmp_path: Path) -> None:
    onnx.save(golden.read(golden.FOLDER / "bert.dynamo-sdpa.onnxtxt"), tmp_path / "bert.onnx")
    (made,) = bertc.build(str(tmp_path / "bert.onnx"), tmp_path / "out", targets=["onnxruntime-tensorrt=fp16"])
    manifest = json.loads((made.path / "manifest.json").read_text("utf-8"))
    assert not [op for op in manifest["graph"]["ops"] if "microsoft" in op] and manifest["graph"]["ops"]["MatMul"] > 4
    assert manifest["engine"]["session"]["enable"] == ["fp16"]
    assert "float32 islands may not hold" in (made.path / "report.json").read_text("utf-8")
    assert bertc.verify(made.path)[0].passed
    with pytest.raises(errors.Missing, match=r"onnxruntime-gpu is not installed.*no NVIDIA GPU found"):
        bertc.load(made.path)


def test_every_profile_is_given_with_each_dynamic_input_once() -> None:
    made = options.profile_options(IDS, RANGES)
    assert made == {
        "trt_profile_min_shapes": "ids:1x16,mask:1x16,ids:1x8,mask:1x8",
        "trt_profile_opt_shapes": "ids:8x128,mask:8x128,ids:1x16,mask:1x16",
        "trt_profile_max_shapes": "ids:32x512,mask:32x512,ids:1x32,mask:1x32",
    }
    fixed = TensorSpec.from_json({"name": "x", "dtype": "float32", "dims": [2, 3]})
    assert options.profile_options([fixed], RANGES) == {}
    assert "x:" not in options.profile_options([fixed, *IDS], RANGES)["trt_profile_min_shapes"]


def test_tensorrt_is_asked_first_and_each_model_keeps_engines_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for sha256 in ("a" * 64, "b" * 64):
        chosen = options.checked_options({"enable": ["fp16"], "max_workspace_size": 2**30}, tmp_path / "model.onnx")
        (first, given), (second, _) = options.provider_list(sha256, chosen, IDS, RANGES)
        assert (first, second) == options.PROVIDERS and given["trt_fp16_enable"] == "True" and "trt_int8_enable" not in given
        assert given["trt_max_workspace_size"] == str(2**30)
        found.append(given["trt_engine_cache_path"])
    assert len(set(found)) == 2 and all(path.startswith(str(tmp_path)) for path in found)
    own = options.checked_options({"engine_cache": "~/kept"}, tmp_path)
    assert options.cache_folder("a" * 64, own) == Path.home() / "kept"


OPTIONS: dict[str, tuple[Any, str]] = {
    "device_id": (-1, "a whole number from 0"),
    "builder_optimization_level": (6, "from 0 to 5"),
    "enable": (["fp61"], "a list of fp16"),
    "engine_cache": (3, "a folder"),
    "providers": (["CPUExecutionProvider"], "target onnxruntime for the CPU"),
    "engine_cach": ("x", "did you mean 'engine_cache'"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_a_manifest_that_is_none_is_named(option: str, tmp_path: Path) -> None:
    value, said = OPTIONS[option]
    with pytest.raises(errors.ArtifactError, match=said):
        options.checked_options({option: value}, tmp_path)


def test_what_it_is_for_and_what_it_refuses() -> None:
    assert str(targets.target_for(gpu_models.get("h100"), "onnxruntime-tensorrt")) == "onnxruntime-tensorrt"
    assert "DynamicQuantizeLinear" in str(targets.refusal(targets.parse_spec("onnxruntime-tensorrt"), "int8-dynamic"))
    assert "onnxruntime-tensorrt" in str(targets.refusal(targets.parse_spec("onnxruntime-tensorrt"), "fp16", packed=True))
    assert onnxruntime_tensorrt.refusal((), "int8") is None
