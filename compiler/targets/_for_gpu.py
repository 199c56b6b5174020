"""Which target builds for a GPU model, and where.

ONNX Runtime's CUDA provider, where it is asked for: one file for all GPUs that the wheel has code for, made on any machine.

TensorRT-RTX builds on any machine, with no GPU, for the SMs it knows; one plan holds its four default SMs and is as large as for
one of them. TensorRT builds on a host that has that very GPU model, for it alone.
"""

from __future__ import annotations

from typing import Any

from ..core import RecipeError, did_you_mean, gpu_models
from ._onnxruntime_cuda import kernels
from ._registry import TargetSpec, get

# sm80 is in this compiler's list and not in NVIDIA's support matrix: for A100 and A30 it must be named (a100/tensorrt-rtx).
UNSUPPORTED_RTX = frozenset({"sm80"})


def target_for(gpu: gpu_models.Gpu, target: str | None = None, *, per_sm: bool = False) -> TargetSpec:
    """The target that builds for a GPU model: the named one, else tensorrt-rtx where it knows the SM, else tensorrt.

    The SMs are those of the whole plan: the four that share one, unless `per_sm`. RecipeError for a target that cannot.
    """
    rtx = get("tensorrt-rtx")
    if target is None:
        target = "tensorrt-rtx" if gpu.sm in rtx.SMS and gpu.sm not in UNSUPPORTED_RTX else "tensorrt"
    if target in ("tensorrt", "onnxruntime-tensorrt"):
        return TargetSpec(target)
    if target == "onnxruntime-cuda":
        return _for_cuda(gpu, per_sm)
    if target != "tensorrt-rtx":
        known = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")
        raise RecipeError(f"{gpu.name}/{target}: {target!r} builds for no GPU{did_you_mean(target, known)}")
    if gpu.sm not in rtx.SMS:
        raise RecipeError(
            f"{gpu.name}/{target}: TensorRT-RTX does not build for {gpu.sm}, only for {', '.join(rtx.SMS)}; use tensorrt"
        )
    shared = gpu.sm in rtx.DEFAULT_SMS and not per_sm
    return TargetSpec("tensorrt-rtx", rtx.DEFAULT_SMS if shared else (gpu.sm,))


def _for_cuda(gpu: gpu_models.Gpu, per_sm: bool) -> TargetSpec:
    """The SMs whose machine code is in the wheel; a GPU runs that of its own major version. RecipeError where there is none."""
    cuda: Any = get("onnxruntime-cuda")
    if why := cuda.why_not(gpu.sm):
        raise RecipeError(f"{gpu.name}/onnxruntime-cuda: {why}; use tensorrt")
    own = kernels.image_for(gpu.sm)
    shared = own in cuda.DEFAULT_SMS and not per_sm
    return TargetSpec("onnxruntime-cuda", cuda.DEFAULT_SMS if shared else (str(own),))
