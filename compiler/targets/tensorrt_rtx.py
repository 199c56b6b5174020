"""TensorRT-RTX: compiles without a GPU, for consumer and workstation GPUs from Turing to Blackwell. Never for Hopper."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import InputError, Missing, RecipeError, did_you_mean
from ..core import machine as packages
from ..runtime import Runner
from ._protocol import Availability, BuildRequest, Built
from ._tensorrt import adapter as _trt
from ._tensorrt import kernel_log as _kernels
from ._tensorrt.adapter import CARRIES as CARRIES
from ._tensorrt.adapter import FUSES as FUSES
from ._tensorrt.adapter import INT8_ATTENTION as INT8_ATTENTION
from ._tensorrt.adapter import INT8_BASE as INT8_BASE
from ._tensorrt.adapter import lower as lower
from ._tensorrt.adapter import lowerings as lowerings
from ._tensorrt.graph_refusal import graph_refusal as graph_refusal

MODULE = "tensorrt_rtx"
INSTALL = "pip install 'bertc[rtx]'"
SMS: tuple[str, ...] = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
# One plan for these four is as large as for one. Turing wants an engine of its own; sm80 is not in NVIDIA's support matrix.
DEFAULT_SMS: tuple[str, ...] = ("sm86", "sm89", "sm120", "sm121")
SM80_NOTE = (
    "sm80: TensorRT-RTX builds it, but NVIDIA's support matrix does not list it, so the engine may not run; for A100 and A30 "
    "use the target 'tensorrt'"
)


def available() -> Availability:
    """Builds anywhere the packages are installed; runs where an NVIDIA GPU of a supported SM is. Imports neither package."""
    version = packages.installed_version(MODULE) or ""
    absent = [name for name in (MODULE, "polygraphy") if packages.installed_version(name) is None]
    if absent:
        return Availability(False, False, f"not installed: {', '.join(absent)}", version, INSTALL)
    found = packages.gpus()
    if not found:
        return Availability(True, False, "no NVIDIA GPU found", version, INSTALL)
    if not any(sm in SMS for _, sm in found):
        named = ", ".join(f"{name} ({sm})" for name, sm in found)
        return Availability(True, False, f"TensorRT-RTX does not run on {named}; it runs on {', '.join(SMS)}", version, INSTALL)
    return Availability(True, True, "", version, INSTALL)


def build(request: BuildRequest) -> Built:
    """engine.plan for `request.sms` (DEFAULT_SMS when none). Raises RecipeError, InputError, Missing, BuildFailed."""
    sms = request.sms or DEFAULT_SMS
    require_possible(sms, request.precision)
    able = available()
    if not able.build:
        raise Missing(f"target tensorrt-rtx cannot build here: {able.reason}; {INSTALL}")
    notes = (SM80_NOTE,) if "sm80" in sms else ()
    return _trt.build(MODULE, dataclasses.replace(request, sms=sms), notes=notes)


def list_kernels(request: BuildRequest) -> tuple[_kernels.Kernel, ...]:
    """Build an engine, list its kernels, discard it; of a graph of fixed sizes every dimension is a number. Raises as build."""
    return _trt.list_kernels(MODULE, request)


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """Why this compiler cannot build a precision for these SMs; None where it can."""
    if why := _trt.refusal(precision, {sm: sm for sm in sms}):
        return why
    if "sm75" not in sms:
        return None
    if precision in ("int8", "int8-static"):
        return f"{precision} on sm75: TensorRT-RTX has no int8 GEMM for Turing; use --fp16, or leave sm75 out"
    if precision in ("bf16", "fp32"):
        lacks = "bfloat16" if precision == "bf16" else "float32 GEMM (the builder says 'FP32 GEMM is not supported')"
        return f"{precision} on sm75: TensorRT-RTX has no {lacks} for Turing; use --fp16"
    return None


def plugin_refusal(names: Sequence[str], precision: str, packed: bool = False) -> str | None:
    """It takes no plugins that are compiled into the engine."""
    return (
        f"--plugin {', '.join(names)}: TensorRT-RTX takes none of these. Its parser says: 'TensorRT-RTX imports IPluginV3 "
        "plugins registered with an IPluginCreatorV3One creator only', and ours are quickly deployable ones; use the target "
        "tensorrt"
    )


def packed_refusal(precision: str) -> str | None:
    """Its parser has no layer that counts tokens."""
    return (
        "--packed: target tensorrt-rtx cannot count the tokens of a batch. Its parser says 'NonZero plugin creator version 1 was "
        "not found in plugin registry', and its builder has no kernel of attention over packed tokens for any of its SMs; use "
        "the target tensorrt, onnxruntime-cuda or onnxruntime"
    )


def require_possible(sms: tuple[str, ...], precision: str) -> None:
    """Raises RecipeError for an unknown SM or SMs that cannot share an engine, InputError for a precision that they lack."""
    for sm in sms:
        if sm not in SMS:
            raise RecipeError(f"tensorrt-rtx cannot build for {sm!r}{did_you_mean(sm, SMS)}")
    if "sm75" in sms and len(sms) > 1:
        others = ", ".join(sm for sm in sms if sm != "sm75")
        raise RecipeError(f"sm75 and {others} were requested in one engine; Turing needs its own: build sm75 apart")
    if why := refusal(sms, precision):
        raise InputError(why)


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """Run an artifact. Raises Missing with the reason where no GPU here can."""
    able = available()
    if not able.run:
        hint = able.install if not able.build else "run it on a machine with one of " + ", ".join(manifest.get("sms") or SMS)
        raise Missing(f"target tensorrt-rtx cannot run here: {able.reason}; {hint}")
    return _trt.load(MODULE, directory, manifest)
