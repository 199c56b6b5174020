"""onnxruntime: ONNX Runtime on the CPU. Builds, runs and verifies anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core import ArtifactError, Feeds, Outputs, TensorSpec, did_you_mean, profiles
from ..core import machine as packages
from ..graph import Graph
from ..runtime import Runner
from ._model_file import ModelFile, read_model
from ._protocol import Availability, BuildRequest, Built, place_graph

FUSES = True  # what ONNX Runtime makes of the source's own graph when it loads it is slower: benchmarks/bench_ort.py
PACKS = True  # _onnxruntime/lower_packed.py
SMS: tuple[str, ...] = ()
DEFAULT_SMS: tuple[str, ...] = ()
INT8_BASE, INT8_ATTENTION = "fp32", None
MODEL = "model.onnx"
MOST_THREADS = 1024
MAPPED_FROM = 2**14  # bytes of a weight; smaller ones stay in the graph: a mapping is whole pages, and a process has 65,530
# What load() runs with; recorded in the manifest so that a deployment can use the same. Optimised when the session is made,
# not offline: ONNX Runtime's saved optimised graphs are tied to the instruction set of the machine that wrote them.
SESSION = {
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "execution_mode": "ORT_SEQUENTIAL",
    "providers": ["CPUExecutionProvider"],
}


def available() -> Availability:
    """Builds and runs wherever the package is installed."""
    found = packages.onnxruntime_version()
    if found is None:
        return Availability(False, False, "onnxruntime is not installed", "", "pip install 'bertc[cpu]'")
    both = packages.installed_version("onnxruntime") and packages.installed_version("onnxruntime-gpu")
    reason = "onnxruntime and onnxruntime-gpu are both installed and own the same folder: uninstall one" if both else ""
    return Availability(not both, not both, reason, found, "pip install 'bertc[cpu]'")


def refusal(sms: tuple[str, ...], precision: str) -> str | None:
    """ONNX Runtime's CPU provider has kernels of bfloat16 for casts and little else (1.31: no Add, no MatMul)."""
    if precision == "bf16":
        return (
            "target onnxruntime: ONNX Runtime on the CPU has no kernels of bfloat16. For the CPU build --fp32 or --int8; for the "
            "typed graph alone --target null"
        )
    return None


def lower(graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False) -> Graph:
    """Standard ONNX in the form that ONNX Runtime's CPU kernels are fastest at."""
    from ._onnxruntime import lower as ort

    return ort.lower(graph)


def lowerings(sms: tuple[str, ...] = (), *, quantised: bool = False) -> Mapping[str, Any]:
    """The bodies that lower() writes, by operator; the fusions are proven with them."""
    from ._onnxruntime import lower as ort

    return ort.LOWERINGS


def build(request: BuildRequest) -> Built:
    """`model.onnx` is `graph.onnx` under the name a deployment looks for.

    The session is made once here, so that a graph ONNX Runtime refuses fails the build and not the deployment.
    """
    digest = place_graph(request, MODEL)
    notes: tuple[str, ...] = ()
    if request.precision == "fp16":
        notes = (
            "ONNX Runtime CPU computes fp16 in float32 between casts: the artifact is smaller, not faster, "
            "and does not overflow as the type does; verify also runs the reference with emulated rounding",
        )
    if request.precision in ("fp8", "int8-weights"):
        notes = (f"ONNX Runtime CPU computes {request.precision} in float32 behind each DequantizeLinear: smaller, not faster",)
    return Built(files={MODEL: digest}, facts={"session": SESSION}, notes=notes)


def load(directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """A CPU session over model.onnx with the session options of the manifest; `intra_op_num_threads` among them is heeded."""
    return OnnxRuntimeRunner(read_model(directory, manifest, MODEL), manifest)


def _nothing(options: Any) -> None:
    """The session options as they are."""


def save_mapped(directory: Path, manifest: Mapping[str, Any], out: Path) -> Runner:
    """The runner that load() gives, whose session also writes what it made of the graph to `out`, and to `out`.data its weights,
    once as they are and once as the kernels of this machine want them packed. They are good for this machine alone."""

    def save(options: Any) -> None:
        options.optimized_model_filepath = str(out)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{out.name}.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(MAPPED_FROM))
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")

    return OnnxRuntimeRunner(read_model(directory, manifest, MODEL), manifest, save)


def load_mapped(saved: Path, manifest: Mapping[str, Any]) -> Runner:
    """A runner over what save_mapped() wrote. It maps the weights: sessions and processes of the same files share their memory.

    Without an arena and memory patterns: they keep what the largest batch took for each session, and save no time here
    (benchmarks/bench_many_models.py).
    """

    def configure(options: Any) -> None:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False

    return OnnxRuntimeRunner(ModelFile(saved), manifest, configure)


def open_file(path: Path, described: Mapping[str, Any]) -> Runner:
    """A session over an ONNX file that is no artifact yet. `described`: its "inputs" and "outputs" as a manifest has them."""
    return OnnxRuntimeRunner(ModelFile(path), {**described, "profiles": [], "engine": {"session": SESSION}})


class OnnxRuntimeRunner(Runner):
    """One ONNX Runtime session. Not bound to the profiles, which are its buckets: ONNX Runtime takes any size the model takes."""

    def __init__(self, model: Path | ModelFile, manifest: Mapping[str, Any], configure: Callable[[Any], None] = _nothing) -> None:
        """`model`: a file of this user's own, or one of an artifact, whose bytes were checked and are not read again."""
        file = ModelFile(model) if isinstance(model, Path) else model
        inputs, outputs = ([TensorSpec.from_json(d) for d in manifest[kind]] for kind in ("inputs", "outputs"))
        super().__init__(inputs, outputs)
        self.buckets = profiles.profiles_from_json(manifest["profiles"])
        from ..runtime import import_onnxruntime, open_session

        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its log goes past every console, names as they are; what it refuses is raised
        chosen = SESSION | dict(manifest["engine"]["session"])
        options.graph_optimization_level = _member(ort.GraphOptimizationLevel, chosen, "graph_optimization_level", file.path)
        options.execution_mode = _member(ort.ExecutionMode, chosen, "execution_mode", file.path)
        threads = chosen.get("intra_op_num_threads", 0)  # 0: as many as there are cores
        if type(threads) is not int or not 0 <= threads <= MOST_THREADS:
            raise ArtifactError(f"{file.path}: engine.session.intra_op_num_threads is {threads!r}; it is 0 to {MOST_THREADS}")
        options.intra_op_num_threads = threads
        configure(options)
        held = file.configure(options)
        self._session = open_session(file.given, options)
        del held  # ONNX Runtime has its own copy by now

    def _run(self, feeds: Feeds) -> Outputs:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def _member(kind: Any, chosen: Mapping[str, Any], key: str, path: Path) -> Any:
    """A session option by the name that a manifest has for it, which must be one of ONNX Runtime's."""
    known = kind.__members__
    if not isinstance(chosen[key], str) or chosen[key] not in known:
        raise ArtifactError(f"{path}: engine.session.{key} is {chosen[key]!r}{did_you_mean(str(chosen[key]), known)}")
    return known[chosen[key]]
