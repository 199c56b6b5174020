"""ONNX Runtime with its TensorRT provider: builds on any machine; TensorRT compiles the file where it is loaded, for that GPU.

The graph is the one that TensorRT takes best, not that of `onnxruntime-cuda`: of com.microsoft operators TensorRT knows none, and
each would cut the graph into one more engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import Missing
from ..core import machine as packages
from ..runtime import Runner
from . import onnxruntime_cuda as cuda
from ._model_file import read_model
from ._onnxruntime_cuda import tensorrt_options
from ._protocol import Availability, BuildRequest, Built, place_graph
from ._tensorrt import adapter as _trt
from ._tensorrt.adapter import CARRIES as CARRIES
from ._tensorrt.adapter import FUSES as FUSES
from ._tensorrt.adapter import INT8_ATTENTION as INT8_ATTENTION
from ._tensorrt.adapter import INT8_BASE as INT8_BASE
from ._tensorrt.adapter import lower as lower
from ._tensorrt.adapter import lowerings as lowerings
from ._tensorrt.graph_refusal import graph_refusal as graph_refusal

MODEL = cuda.MODEL
INSTALL = "pip install 'bertc[gpu]' 'tensorrt-cu13<11'"
SMS: tuple[str, ...] = ()
DEFAULT_SMS: tuple[str, ...] = ()
ISLANDS = (
    "float32 islands may not hold: this provider has no switch for strongly typed networks, so TensorRT may compute them in "
    "{precision}; verify on the GPU (bertc verify --require-engine), or use the target tensorrt, which obeys them"
)


def available() -> Availability:
    """Builds where any onnxruntime is, to verify with; runs where onnxruntime-gpu and a GPU are. load asks for TensorRT."""
    able = cuda.available()
    run = bool(able.build and able.version and packages.gpus())
    return Availability(able.build, run, "" if run else able.reason, able.version, INSTALL)


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """Why TensorRT cannot build a precision; None where it can. Which GPU will load it is not known here."""
    return _trt.refusal(precision, {})


def build(request: BuildRequest) -> Built:
    """`model.onnx` and the options to load it with: types, profiles."""
    options = tensorrt_options.session_options(request)
    notes = [
        "TensorRT compiles the file when it is first loaded on a GPU (minutes), and keeps the engine: engine.session.engine_cache"
    ]
    if request.precision != "fp32":
        notes.append(ISLANDS.format(precision=request.precision))
    return Built(files={MODEL: place_graph(request, MODEL)}, facts={"session": options}, notes=tuple(notes))


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """Run an artifact. Raises Missing that names what is missing: the package, the GPU, or the libraries."""
    able = available()
    if not able.run:
        raise Missing(f"target onnxruntime-tensorrt cannot run here: {able.reason}; {able.install}")
    from ._onnxruntime_cuda.tensorrt_session import TensorrtRunner

    return TensorrtRunner(read_model(directory, manifest, MODEL), manifest)
