"""TensorRT: compiles on the host that has the GPU, for that GPU; for data centres (A100, H100, H200, B200, L4)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import Missing, RecipeError
from ..core import machine as packages
from ..graph import Graph
from ..runtime import Runner
from ._protocol import Availability, BuildRequest, Built
from ._tensorrt import adapter as _trt
from ._tensorrt import quantised_check as _int8

MODULE = "tensorrt"
INSTALL = "pip install 'bertc[trt]'  (on a host with the GPU)"
OLDEST = (10, 8)
OLDEST_FP8 = 89
FUSES = True
SMS: tuple[str, ...] = ()
DEFAULT_SMS: tuple[str, ...] = ()
INT8_BASE = "fp16"
INT8_ATTENTION = _int8.ATTENTION  # with float16 around it; there is none in bfloat16


def available() -> Availability:
    """Needs the package, a library that loads, a version from 10.8 and a GPU; says which of them is missing.

    The library is loaded in a process of its own, because loading it can abort.
    """
    # The wheel's name depends on the CUDA version (tensorrt-cu12, tensorrt-cu13), the module's does not.
    absent = [name for name in (MODULE, "polygraphy") if importlib.util.find_spec(name) is None]
    if absent:
        return Availability(False, False, f"not installed: {', '.join(absent)}", "", INSTALL)
    version, failure = _trt.try_import(MODULE)
    if failure:
        reason = f"the package {MODULE} is installed but its library does not load: {failure}"
        return Availability(False, False, reason, packages.installed_version(MODULE) or "", INSTALL)
    if _numbers(version) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return Availability(False, False, f"{MODULE} {version} is too old; bertc needs {wanted} or newer", version, INSTALL)
    if not packages.gpus():
        return Availability(False, False, "no NVIDIA GPU found (TensorRT builds on the GPU it builds for)", version, INSTALL)
    return Availability(True, True, "", version, INSTALL)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def lower(graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph:
    """Standard ONNX in the form that makes the fewest kernels; a graph without `bertc` nodes is left as it is.

    `quantised`: the form that makes the fewest once it has Q/DQ pairs.
    Raises BuildFailed naming nodes that the parser would misread (see _trt.require_plain).
    """
    return _trt.lower(graph, sms, quantised)


def lowerings(sms: tuple[str, ...] = (), *, quantised: bool = False) -> Mapping[str, Any]:
    """The table of lower(), for proofs."""
    from ._tensorrt import lower_encoder as _lower_trt

    return _lower_trt.lowerings(sms, quantised)


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """Why this compiler cannot build a precision on the GPUs of this machine; None where it can."""
    if why := _trt.refusal(precision):
        return why
    old = [f"{name} ({sm})" for name, sm in packages.gpus() if int(sm.removeprefix("sm")) < OLDEST_FP8]
    return (
        f"asked for fp8 on {', '.join(old)}; it needs sm{OLDEST_FP8} or newer: build --int8"
        if old and precision == "fp8"
        else None
    )


def build(request: BuildRequest) -> Built:
    """engine.plan for the GPU of this machine. Raises RecipeError, Missing, BuildFailed."""
    if request.sms:
        raise RecipeError(f"asked for {', '.join(request.sms)}; target tensorrt takes no SM, it builds for the GPU it runs on")
    _require(build=True)
    return _trt.build(MODULE, request)


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """Run an artifact. Raises Missing with the reason where this machine cannot."""
    _require(build=False)
    return _trt.load(MODULE, directory, manifest)


def _require(build: bool) -> None:
    able = available()
    if not (able.build if build else able.run):
        raise Missing(f"target tensorrt cannot {'build' if build else 'run'} here: {able.reason}; {able.install}")
