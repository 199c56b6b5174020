"""ONNX Runtime with its CUDA provider: builds on any machine, runs on NVIDIA GPUs from Turing to Hopper (A100, H100, L4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..core import InputError, Missing, RecipeError, did_you_mean, gpu_models
from ..core import machine as packages
from ..graph import Graph
from ..precision import Kernels
from ..runtime import Runner
from ._model_file import read_model
from ._onnxruntime_cuda import kernels, placement
from ._protocol import Availability, BuildRequest, Built, place_graph

FUSES = True
PACKS = True  # _onnxruntime_cuda/lower_packed.py
MODEL = "model.onnx"
PACKAGE = "onnxruntime-gpu"
INSTALL = "pip install 'bertc[gpu]'"
INT8_BASE, INT8_ATTENTION = "fp16", None
SMS: tuple[str, ...] = kernels.sms()
# The file is the same for all. Turing has no bfloat16, so it is asked for by name.
DEFAULT_SMS: tuple[str, ...] = tuple(sm for sm in SMS if sm != "sm75")
NO_INT8 = (
    "{precision}: the CUDA provider of ONNX Runtime has no int8 GEMM that takes Q/DQ pairs or quantises as it runs (no CUDA "
    "kernel of QLinearMatMul, DynamicQuantizeMatMul, MatMulIntegerToFloat): it would dequantise first, slower than fp16; use "
    "--fp16, --int8 weights (smaller, not faster), or for int8 GEMMs the target tensorrt or tensorrt-rtx"
)
# These CUDA kernels sum in float32 whatever their type is (LayerNormalization has U=float, softmax accumulates in float).
KERNELS = Kernels(
    kernels.why_no_kernel, frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax"})
)


def available() -> Availability:
    """Builds where any onnxruntime is, to verify with; runs where onnxruntime-gpu and a GPU that it has code for are."""
    version, other = packages.installed_version(PACKAGE), packages.installed_version("onnxruntime")
    if version and other:
        reason = f"onnxruntime and {PACKAGE} are both installed and own the same folder: pip uninstall both, then {INSTALL}"
        return Availability(False, False, reason, version, INSTALL)
    if not version:
        build = other is not None
        gpu = "" if packages.gpus() else "; no NVIDIA GPU found"
        swap = f" (it takes the place of onnxruntime {other}: uninstall that first)" if build else ""
        return Availability(build, False, f"{PACKAGE} is not installed{swap}{gpu}", "", INSTALL)
    found = packages.gpus()
    if not found:
        return Availability(True, False, "no NVIDIA GPU found", version, INSTALL)
    if not any(kernels.image_for(sm) for _, sm in found):
        return Availability(True, False, " and ".join(sorted({no_image(sm) for _, sm in found})), version, INSTALL)
    return Availability(True, True, "", version, INSTALL)


def no_image(sm: str) -> str:
    """Why a GPU cannot run the wheel."""
    of_sm = gpu_models.of_sm(sm)
    named = f"{sm} ({', '.join(of_sm)})" if of_sm else sm
    version = kernels.table()["onnxruntime"]
    return f"{PACKAGE} {version} holds machine code for {', '.join(SMS)} and no PTX, so it does not run on {named}"


def why_not(sm: str) -> str | None:
    """Why the target does not build for an SM; None where it does."""
    return None if kernels.image_for(sm) else no_image(sm)


def lower(graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph:
    """Standard and com.microsoft operators, as the CUDA kernels take them."""
    from ._onnxruntime_cuda import lower as cuda

    return cuda.lower(graph, quantised=quantised)


def lowerings(sms: tuple[str, ...] = (), *, quantised: bool = False) -> Mapping[str, Any]:
    """The bodies that lower() writes, by operator; the fusions are proven with them."""
    from ._onnxruntime_cuda import lower as cuda

    return cuda.lowerings(quantised=quantised)


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """Why the CUDA provider cannot compute a precision on these SMs; None where it can."""
    if precision in ("int8", "int8-static", "int8-dynamic"):
        return NO_INT8.format(precision=precision)
    if precision == "fp8":
        return "fp8: the CUDA provider of ONNX Runtime has no FP8 GEMM that takes Q/DQ pairs; use --fp16, or the target tensorrt"
    if precision == "bf16" and "sm75" in sms:
        return "bf16 on sm75: Turing has no bfloat16; use --fp16, or leave sm75 out"
    return None


def packed_refusal(precision: str) -> str | None:
    """Why there is no attention without padding in a precision; None where there is."""
    if precision != "bf16":
        return None
    return "--packed --bf16: the CUDA provider of ONNX Runtime has attention without padding for fp16 and fp32; use --fp16"


def require_possible(sms: tuple[str, ...], precision: str) -> None:
    """Raises RecipeError for an SM that the wheel has no code for, InputError for a precision that the provider lacks."""
    for sm in sms:
        if sm not in SMS:
            raise RecipeError(f"onnxruntime-cuda cannot build for {sm!r}: {why_not(sm) or did_you_mean(sm, SMS)}")
    if why := refusal(sms, precision):
        raise InputError(why)


def build(request: BuildRequest) -> Built:
    """`model.onnx`, the typed graph under the name a deployment looks for, each of its nodes with a CUDA kernel.

    Raises RecipeError, InputError, and BuildFailed that names the nodes that would run on the CPU.
    """
    from ._onnxruntime_cuda.session import SESSION

    require_possible(request.sms, request.precision)
    placed = placement.require_kernels(request.graph)
    facts = {
        "session": dict(SESSION),
        "onnxruntime_gpu": kernels.table()["onnxruntime"],
        "placement": {"cuda": placed.cuda, "cpu": list(placed.on_cpu)},
    }
    return Built(files={MODEL: place_graph(request, MODEL)}, facts=facts, notes=tuple(_notes(request, placed)))


def _notes(request: BuildRequest, placed: placement.Placement) -> list[str]:
    version = kernels.table()["onnxruntime"]
    kept = ""
    if placed.on_cpu:
        first = ", ".join(placed.on_cpu[:3]) + (", ..." if len(placed.on_cpu) > 3 else "")
        kept = f"; {len(placed.on_cpu)} of arithmetic on shapes have none and stay on the CPU ({first})"
    notes = [f"{placed.cuda} nodes have a CUDA kernel in {PACKAGE} {version} for their types{kept}"]
    if request.precision == "int8-weights":
        notes.append("weights are int8 and become float16 before or in each GEMM: less memory; its speed was not measured")
    if any(_reads_bias(node) for node in request.graph.model.graph.all_nodes()):
        notes.append("attention adds its mask as a bias; by ONNX Runtime's sources the fused kernel wants a length of 8, 16, ...")
    return notes


def _reads_bias(node: ir.Node) -> bool:
    return node.op_type in ("Attention", "MultiHeadAttention") and len(node.inputs) > 5 and node.inputs[5] is not None


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """Run an artifact. Raises Missing that names what is missing: the package, the GPU, or the provider's libraries."""
    able = available()
    if not able.run:
        raise Missing(f"target onnxruntime-cuda cannot run here: {able.reason}; {able.install}")
    from ._onnxruntime_cuda.session import CudaRunner

    return CudaRunner(read_model(directory, manifest, MODEL), manifest)
