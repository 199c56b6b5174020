"""TensorRT: compiles on the host that has the GPU, for that GPU; for data centres (A100, H100, H200, B200, L4)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import Missing, RecipeError
from ..core import machine as packages
from ..graph import Graph
from ..runtime import Runner
from ._protocol import Availability, BuildRequest, Built
from ._tensorrt import adapter as _trt
from ._tensorrt import plugin_nodes
from ._tensorrt.adapter import CARRIES as CARRIES
from ._tensorrt.adapter import FUSES as FUSES
from ._tensorrt.adapter import INT8_ATTENTION as INT8_ATTENTION
from ._tensorrt.adapter import INT8_BASE as INT8_BASE
from ._tensorrt.adapter import lowerings as lowerings
from ._tensorrt.graph_refusal import graph_refusal as graph_refusal

MODULE = "tensorrt"
INSTALL = "pip install 'bertc[trt]'  (on a host with the GPU)"
OLDEST = (10, 8)
PACKS = True  # _tensorrt/lower_packed.py
PLUGINS = tuple(plugin_nodes.KNOWN)
KERNELS = plugin_nodes.KERNELS
SMS: tuple[str, ...] = ()
DEFAULT_SMS: tuple[str, ...] = ()


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


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """Why this compiler cannot build a precision on the GPUs of this machine; None where it can."""
    return _trt.refusal(precision, {sm: f"{name} ({sm})" for name, sm in packages.gpus()})


def lower(
    graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False, plugins: Sequence[str] = ()
) -> Graph:  # fmt: skip
    """As for TensorRT-RTX, the operators of `plugins` as nodes that call kernels of ours."""
    lowered = _trt.lower(graph, sms, quantised=quantised, given=plugin_nodes.bodies(plugins))
    plugin_nodes.require_used(plugins, graph, lowered)
    return lowered


def plugin_refusal(names: Sequence[str], precision: str, packed: bool = False) -> str | None:
    """Why these operators cannot be kernels of ours; None where they can. Raises Missing without the compiler of kernels."""
    if why := plugin_nodes.require_known(names, precision):
        return why
    if "packed_attention" in names and not packed:
        return "--plugin packed_attention: it computes attention over packed tokens, which --packed makes; give both, or neither"
    if importlib.util.find_spec("triton") is None:
        raise Missing(
            "--plugin: the kernels are compiled by triton, which is not installed: pip install 'bertc[kernels]' (Linux)"
        )
    return None


def packed_refusal(precision: str) -> str | None:
    """Why there is no graph without padding in a precision; None where there is."""
    if precision in plugin_nodes.PRECISIONS:
        return None
    return (
        f"--packed --{precision}: for TensorRT the ranges, the search and the check of int8 and fp8 kernels are of the padded "
        f"graph; use --fp16 --packed, or --{precision} without --packed"
    )


def build(request: BuildRequest) -> Built:
    """engine.plan for the GPU of this machine. Raises RecipeError, Missing, BuildFailed."""
    if request.sms:
        raise RecipeError(f"target tensorrt takes no SM, got {', '.join(request.sms)}: it builds for the GPU of this machine")
    _require(build=True)
    return _trt.build(MODULE, request, notes=tuple(f"no plugin: {why}" for why in plugin_nodes.not_used(request.graph)))


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """Run an artifact. Raises Missing with the reason where this machine cannot."""
    _require(build=False)
    return _trt.load(MODULE, directory, manifest)


def _require(build: bool) -> None:
    able = available()
    if not (able.build if build else able.run):
        raise Missing(f"target tensorrt cannot {'build' if build else 'run'} here: {able.reason}; {able.install}")
