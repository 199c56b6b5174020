"""The recipe wav2vec2-speech, built whole: all its fusions are found, each artifact is verified, the engine has few kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

import bertc
from bertc.artifact.manifest import open_artifact
from bertc.cli._main import run

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "wav2vec2-speech.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("speech") / "built"
    assert run(["build", str(RECIPE), "-o", str(out)]) == 0
    return out


def test_all_that_the_family_promises_is_fused_and_cheap(built: Path) -> None:
    manifest = open_artifact(built / "tensorrt-rtx-sm89-fp16").manifest
    counts = manifest["passes"]["counts"]
    assert {rule: counts[rule] for rule in ("conv1d_gelu", "weight_norm", "attention", "skip_layernorm", "bias_gelu")} == {
        "conv1d_gelu": 8,
        "weight_norm": 1,
        "attention": 2,
        "skip_layernorm": 5,
        "bias_gelu": 2,
    }
    kernels = manifest["engine"]["kernels"]
    assert kernels["layers"] == [8, 8]
    assert kernels["rest"] <= 18


def test_the_artifacts_give_what_the_model_gives(built: Path) -> None:
    verdicts = {Path(v.path).name: v for v in bertc.verify(built)}
    exact = verdicts["onnxruntime-fp32"]
    assert exact.engine_executed and exact.result.outputs[0].relative <= 1e-5
    half = verdicts["tensorrt-rtx-sm89-fp16"].result.outputs[0]
    assert half.nonfinite == 0 and half.cosine_min >= 0.9999
    assert half.relative > 1e-5, "emulated rounding must show: an exact result would mean that nothing was rounded"
