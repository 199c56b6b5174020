"""A session of the CUDA provider, and the runner over it: bound inputs and outputs, CUDA graphs where they are asked for.

What it does not take in silence: a provider that did not load (ONNX Runtime would run everything on the CPU), and a node that
ONNX Runtime gave to the CPU though it is no arithmetic on shapes.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core import ArtifactError, BuildFailed, Feeds, Missing, Outputs, RunFailed, TensorSpec, did_you_mean, profiles
from ...runtime import Runner, import_onnxruntime
from .._model_file import ModelFile
from .placement import ARITHMETIC

PROVIDER = "CUDAExecutionProvider"
# What load() runs with; recorded in the manifest, where a deployment may change it.
SESSION: Mapping[str, Any] = {
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "providers": [PROVIDER],
    "device_id": 0,
    "gpu_mem_limit": 0,  # bytes of device memory for values (weights among them); 0: no limit
    "arena_extend_strategy": "kSameAsRequested",  # the other doubles what it takes from the device each time
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE, its default, times every kernel again for every new shape
    "use_tf32": 0,  # float32 is float32
    "cuda_graphs": 0,  # of so many shapes the launches are recorded and replayed; they hold their memory
}
LARGEST = {"device_id": 255, "gpu_mem_limit": 2**48, "use_tf32": 1, "cuda_graphs": 256, "intra_op_num_threads": 1024}
CHOICES = {
    "graph_optimization_level": ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"),
    "arena_extend_strategy": ("kSameAsRequested", "kNextPowerOfTwo"),
    "cudnn_conv_algo_search": ("HEURISTIC", "EXHAUSTIVE", "DEFAULT"),
}
NO_GRAPH = "-1"
LIBRARIES = "its libraries of CUDA 13 and cuDNN 9 are missing or too old: pip install 'onnxruntime-gpu[cuda,cudnn]'"


class CudaRunner(Runner):
    """One session on one GPU. Not bound to the profiles: they are the buckets, and the shapes that a CUDA graph is kept of."""

    def __init__(self, model: ModelFile, manifest: Mapping[str, Any]) -> None:
        inputs, outputs = ([TensorSpec.from_json(d) for d in manifest[kind]] for kind in ("inputs", "outputs"))
        super().__init__(inputs, outputs)
        self.buckets = profiles.profiles_from_json(manifest["profiles"])
        self._options = checked_options(manifest["engine"]["session"], model.path)
        self._session = open_cuda_session(model, self._options)
        self._graphs: dict[tuple[tuple[int, ...], ...], _Recorded] = {}
        self._lock = threading.Lock()  # one recording at a time; a recorded graph has one set of buffers

    def _run(self, feeds: Feeds) -> Outputs:
        shapes = tuple(feeds[spec.name].shape for spec in self.inputs)
        if not self._options["cuda_graphs"] or not self._repeats(feeds):
            return self._run_bound(feeds, self._session.io_binding())
        with self._lock:
            if shapes not in self._graphs and len(self._graphs) < self._options["cuda_graphs"]:
                # Its outputs have to lie where they will lie: their shapes come from a run that is not recorded.
                found = self._run_bound(feeds, self._session.io_binding())
                self._graphs[shapes] = _Recorded(self._session, str(len(self._graphs) + 1), feeds, found, self._device)
                return found
            if shapes in self._graphs:
                return self._graphs[shapes].run(feeds)
        return self._run_bound(feeds, self._session.io_binding())

    @property
    def _device(self) -> int:
        return int(self._options["device_id"])

    def _run_bound(self, feeds: Feeds, binding: Any) -> Outputs:
        for spec in self.inputs:
            binding.bind_cpu_input(spec.name, np.ascontiguousarray(feeds[spec.name]))
        for spec in self.outputs:
            binding.bind_output(spec.name, "cpu")
        _run(self._session, binding, run_options(NO_GRAPH if self._options["cuda_graphs"] else None))
        return dict(zip((spec.name for spec in self.outputs), binding.copy_outputs_to_cpu(), strict=True))

    def _repeats(self, feeds: Feeds) -> bool:
        """Whether a shape is one of the buckets': every dimension but the batch at a profile's best or largest size."""
        kept = {
            name: {size for p in self.buckets if name in p for size in (p[name].opt, p[name].max)}
            for p in self.buckets
            for name in p
        }
        batch = self.inputs[0].dims[0] if self.inputs[0].dims else None
        sizes = [(dim, size) for spec in self.inputs for dim, size in zip(spec.dims, feeds[spec.name].shape, strict=True)]
        return all(size in kept.get(dim, (size,)) for dim, size in sizes if isinstance(dim, str) and dim != batch)


class _Recorded:
    """A CUDA graph of one shape: buffers on the device that stay where they are, and the number ONNX Runtime knows it by."""

    def __init__(self, session: Any, number: str, feeds: Feeds, outputs: Outputs, device: int) -> None:
        value = import_onnxruntime().OrtValue
        self._session, self._options = session, run_options(number)
        self._inputs = {
            name: value.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", device) for name, array in feeds.items()
        }
        self._outputs = {
            name: value.ortvalue_from_shape_and_type(list(array.shape), array.dtype, "cuda", device)
            for name, array in outputs.items()
        }
        self._binding = session.io_binding()
        for name, held in self._inputs.items():
            self._binding.bind_ortvalue_input(name, held)
        for name, held in self._outputs.items():
            self._binding.bind_ortvalue_output(name, held)

    def run(self, feeds: Feeds) -> Outputs:
        for name, held in self._inputs.items():
            held.update_inplace(np.ascontiguousarray(feeds[name]))
        self._binding.synchronize_inputs()
        _run(self._session, self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: held.numpy() for name, held in self._outputs.items()}


def _run(session: Any, binding: Any, options: Any) -> None:
    """Raises Missing where cuDNN or device memory is missing, RunFailed with ONNX Runtime's words where it fails else."""
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        text = str(error).strip().splitlines()[0]
        if "cuDNN" in text:
            raise Missing(f"cuDNN 9 does not load, which reductions and convolutions need: {LIBRARIES} ({text})") from error
        if "allocate" in text or "out of memory" in text:
            raise Missing(f"too little device memory: run fewer rows, or raise gpu_mem_limit in the manifest ({text})") from error
        raise RunFailed(f"ONNX Runtime loads the graph and cannot run it on the GPU: {text}") from error


def run_options(graph: str | None) -> Any:
    """RunOptions with the number of a CUDA graph; None where the session records none."""
    options = import_onnxruntime().RunOptions()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", graph)
    return options


def checked_options(given: Any, path: Path) -> dict[str, Any]:
    """The options of a manifest, completed. Raises ArtifactError for what is no option, or no value of one."""
    if not isinstance(given, Mapping):
        raise ArtifactError(f"{path}: engine.session is {given!r}; it is a table of options")
    chosen = {**SESSION, **given}
    for name, value in chosen.items():
        where = f"{path}: engine.session.{name} is {value!r}"
        if name in LARGEST:
            if type(value) is not int or not 0 <= value <= LARGEST[name]:
                raise ArtifactError(f"{where}; it is a whole number from 0 to {LARGEST[name]}")
        elif name in CHOICES:
            if value not in CHOICES[name]:
                raise ArtifactError(f"{where}{did_you_mean(str(value), CHOICES[name])}")
        elif name != "providers":
            raise ArtifactError(f"{where}, which is no option{did_you_mean(name, (*LARGEST, *CHOICES))}")
        elif value != [PROVIDER]:
            raise ArtifactError(f"{where}; this artifact is for [{PROVIDER!r}] alone: build the target onnxruntime for the CPU")
    return chosen


def open_cuda_session(model: ModelFile, chosen: Mapping[str, Any]) -> Any:
    """A session whose nodes are on the GPU.

    Raises Missing where the provider does not load, BuildFailed where ONNX Runtime refuses the model or leaves nodes to the CPU.
    """
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, and the system may have that
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised
    options.graph_optimization_level = ort.GraphOptimizationLevel.__members__[chosen["graph_optimization_level"]]
    options.intra_op_num_threads = chosen.get("intra_op_num_threads", 0)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    held = model.configure(options)
    try:
        session = ort.InferenceSession(model.given, options, providers=[(PROVIDER, provider_options(chosen))], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        if PROVIDER not in ort.get_available_providers() or "Failed to load" in str(error):
            raise Missing(f"the CUDA provider of onnxruntime-gpu does not load: {LIBRARIES} ({error})") from error
        raise BuildFailed(f"ONNX Runtime refuses {model.path}: {error}") from error
    del held  # ONNX Runtime has its own copy by now
    if PROVIDER not in session.get_providers():
        raise Missing(f"the CUDA provider of onnxruntime-gpu did not load, ONNX Runtime would run on the CPU: {LIBRARIES}")
    if found := nodes_on_cpu(session):
        raise BuildFailed(
            f"{model.path}: this onnxruntime-gpu ({ort.__version__}) has no CUDA kernel for {len(found)} nodes and would run "
            f"them on the CPU: {', '.join(found[:5])}; use the version in the manifest (engine.onnxruntime_gpu) or newer"
        )
    return session


def provider_options(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The options of the CUDA provider."""
    options = {name: str(chosen[name]) for name in ("device_id", "use_tf32", "arena_extend_strategy", "cudnn_conv_algo_search")}
    if chosen["gpu_mem_limit"]:
        options["gpu_mem_limit"] = str(chosen["gpu_mem_limit"])
    return options | ({"enable_cuda_graph": "1"} if chosen["cuda_graphs"] else {})


def nodes_on_cpu(session: Any) -> list[str]:
    """Nodes that ONNX Runtime gave to the CPU and that are no arithmetic on shapes. Missing where it is too old to tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        found = import_onnxruntime().__version__
        raise Missing(f"onnxruntime-gpu {found} does not tell where it runs a node: pip install 'onnxruntime-gpu>=1.31'")
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == "CPUExecutionProvider"]
    return [f"{node.op_type} {node.name!r}" for part in parts for node in part.get_nodes() if node.op_type not in ARITHMETIC]
