"""What a user writes for a target: SMs, GPU models, and what is said of those that it cannot build for."""

from __future__ import annotations

import pytest

from bertc import targets
from bertc.core import RecipeError, gpu_models


@pytest.mark.parametrize(
    ("text", "sms"),
    [
        ("tensorrt-rtx:l4", ("sm89",)),
        ("tensorrt-rtx:l4,rtx-4090", ("sm89",)),
        ("tensorrt-rtx:a10,l40s,rtx-5090=fp16", ("sm86", "sm89", "sm120")),
        ("tensorrt-rtx:sm86,l4", ("sm86", "sm89")),
        ("tensorrt-rtx:t4", ("sm75",)),
    ],
)
def test_a_gpu_model_stands_for_its_sm(text: str, sms: tuple[str, ...]) -> None:
    assert targets.parse_spec(text).sms == sms


@pytest.mark.parametrize(("word", "also"), [("sm90", "h100"), ("h200", "sm90"), ("b200", "sm100"), ("sm103", "b300")])
def test_what_the_target_cannot_build_for_is_said_with_what_can(word: str, also: str) -> None:
    with pytest.raises(RecipeError) as told:
        targets.parse_spec(f"tensorrt-rtx:{word}=fp16")
    assert also in str(told.value)
    assert "use the target tensorrt, on a host with that GPU" in str(told.value)


@pytest.mark.parametrize(("word", "meant"), [("rtx-490", "rtx-4090"), ("sm98", "sm89"), ("l5", "l4")])
def test_a_typing_error_is_answered(word: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"did you mean {meant!r}"):
        targets.parse_spec(f"tensorrt-rtx:{word}")


@pytest.mark.parametrize("gpu", gpu_models.TABLE, ids=lambda gpu: gpu.name)
def test_every_model_of_the_table_is_taken_or_refused_with_its_sm(gpu: gpu_models.Gpu) -> None:
    if gpu.sm in targets.get("tensorrt-rtx").SMS:
        assert targets.parse_spec(f"tensorrt-rtx:{gpu.name}").sms == (gpu.sm,)
        return
    with pytest.raises(RecipeError, match=gpu.sm):
        targets.parse_spec(f"tensorrt-rtx:{gpu.name}")


def test_what_the_cpu_has_no_kernels_for_is_refused_before_any_work() -> None:
    assert "no kernels of bfloat16" in str(targets.refusal(targets.parse_spec("onnxruntime"), "bf16"))
    assert targets.refusal(targets.parse_spec("onnxruntime"), "fp16") is None
