"""Build, lower, load: shared by the targets `tensorrt` and `tensorrt-rtx`, one API in two modules.

Building happens in a process of its own (`worker`), so this one never imports the compiler. Running goes through
Polygraphy. The worker sets up builder, profiles and config itself: Polygraphy's config for TensorRT-RTX leaves TF32 on, and any
of its configs attaches a timing cache, which TensorRT-RTX has no use for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import ArtifactError, BuildFailed, Feeds, Missing, Outputs, Profile, TensorSpec, scratch
from ...core import machine as packages
from ...core import profiles as profiles_
from ...graph import DOMAIN, Graph, module_path
from ...runtime import PLUGIN_DOMAIN, Runner
from ...source import carry_quantisation
from .._fourier import rewrite_fourier
from .._protocol import BuildRequest, Built, engine_bytes, engine_file
from . import branches as _branches
from . import kernel_log as _kernels
from . import plugin_nodes as _plugins
from . import quantised_check as _int8
from . import weight_check as _weights

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...ops import Body

PLAN = "engine.plan"
SHOWN_ERRORS = 5
FUSES = True
CARRIES = ("fp32", "fp16", "bf16")  # what a source's own Q/DQ pairs may be built in: the type of all that is not int8
INT8_BASE = "fp16"
INT8_ATTENTION = _int8.ATTENTION  # with float16 around it; there is none in bfloat16
OLDEST_FP8 = 89
# What the builders say -> why, and what to do about it.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"Attention operation was not supported by a dedicated kernel",
        "no fused attention kernel for this type or head size (float32 never has one); give the Attention node the "
        "attribute TRT_decomposable=1, decompose it into MatMul, Softmax and MatMul, or build fp16",
    ),
    (
        r"Elementwise layer does not support operator \w+ and the given inputs with type BOOL",
        "a boolean mask is used in arithmetic; turn it into a float mask (0 where it may attend, very negative elsewhere)",
    ),
    (r"HW-specific datatypes: b16", "bfloat16 needs sm80 or newer; build fp16 for sm75, or leave sm75 out"),
    (r"HW-specific datatypes: fp8", "fp8 needs sm89 or newer; leave older SMs out, or build int8 or fp16 for them"),
    (r"HW-specific datatypes: int4", "int4 weights do not run on sm75; leave sm75 out, or use int8 weights"),
    (r"FP32 GEMM is not supported", "TensorRT-RTX has no float32 GEMM for sm75; build fp16 for it, or leave sm75 out"),
    (
        r"OutOfMemory|Requested size was \d+ bytes|insufficient (workspace|memory)|within workspace limit",
        "the layers need more scratch memory than the limit at the largest sizes of a profile; lower the profile's maximum, "
        "or raise the workspace limit",
    ),
    (r"no optimization profile has been defined", "the graph has dynamic inputs; give it a profile (--profile batch=1:8:32,...)"),
    (
        r"values for profile \d+ violate shape constraints",
        "a profile has a size that a part of the model cannot take: a table of positions ends before it (lower the profile's "
        "maximum), or a branch of an If, planned for whichever way is taken (raise its smallest and best size): --profile",
    ),
    (
        r"missing values for shape input tensor",
        "an input decides a shape (its value, not its size); make it an initializer or derive it from the shape of another input",
    ),
    (
        r"Plugin not found|creator .* not found|No importer registered for op",
        "the parser has no such operator (it matches by name and ignores the domain); inline or lower the node before the build",
    ),
    (r"graph_jit\.cpp.*CUDA_SUCCESS|STRIP_PLAN|REFIT", "refit and stripped weights need a GPU at build time; build without them"),
    (r"no lean (library|runtime)|VERSION_COMPATIBLE", "version-compatible engines need a lean runtime, which is not shipped"),
)


def advice(message: str) -> str:
    """Cause and remedy for a builder's message, or '' for one that is not known."""
    return next((remedy for pattern, remedy in REMEDIES if re.search(pattern, message)), "")


def refusal(precision: str, sms: Mapping[str, str]) -> str | None:
    """Why neither compiler can build a precision; None where they can. `sms`: what to call each SM (`sm89`) in the reason."""
    if precision == "int8-dynamic":
        why = "TensorRT imports neither DynamicQuantizeLinear nor MatMulInteger"
        return f"int8-dynamic: {why}; use --int8 static with --data, or the target onnxruntime"
    old = [name for sm, name in sms.items() if int(sm.removeprefix("sm")) < OLDEST_FP8]
    if old and precision == "fp8":
        return f"fp8 on {', '.join(old)}: it needs sm{OLDEST_FP8} or newer; build --int8, or leave older SMs out"
    return None


def lowerings(sms: tuple[str, ...] = (), *, quantised: bool = False) -> Mapping[str, Body]:
    """The bodies that lower() writes for these SMs, by operator; the fusions are proven with them."""
    from . import lower_encoder

    return lower_encoder.lowerings(sms, quantised)


def lower(
    graph: Graph, sms: tuple[str, ...] = (), *, quantised: bool = False, given: Mapping[str, Body] = {}
) -> Graph:  # fmt: skip
    """Standard ONNX in the form that makes the fewest kernels (of a graph with Q/DQ pairs, where `quantised`).

    `given`: bodies that take the place of those of the table.

    A graph without `bertc` nodes stays as it is, but for a DFT. Raises BuildFailed naming nodes that the parser would misread.
    """
    if not any(node.domain == DOMAIN for node in graph.model.graph):
        require_plain(graph)
        if any(node.op_type == "DFT" for node in graph.model.graph):
            graph = graph.copy()
            rewrite_fourier(graph.model)
        return carry_quantisation(graph)  # of a source that was quantised already
    from ...ops import expand
    from . import layout, lower_packed

    lowered = layout.tidy(expand(graph, {**lowerings(sms, quantised=quantised), **given}))
    if any(node.op_type == lower_packed.LAYOUT for node in graph.model.graph):
        lower_packed.share_equal_nodes(lowered.model)
    rewrite_fourier(lowered.model)
    require_plain(lowered)
    return lowered


def require_plain(graph: Graph) -> None:
    """Refuse what TensorRT's parser misreads: it matches operators by name, ignores domains and function overloads.

    So a node of another domain can become something else of the same name, and all calls of a function can get the weights of
    one. Raises BuildFailed naming the nodes.
    """
    foreign = [n for n in graph.model.graph.all_nodes() if n.domain not in ("", "ai.onnx", PLUGIN_DOMAIN)]
    if foreign:
        shown = ", ".join(f"{n.name!r} ({n.domain}.{n.op_type})" for n in foreign[:SHOWN_ERRORS])
        raise BuildFailed(
            f"{len(foreign)} nodes are not ONNX operators: {shown}; TensorRT cannot read them: give the file from before ONNX "
            "Runtime's optimiser, or build for onnxruntime=fp32"
        )
    if graph.model.functions:
        shown = ", ".join(f"{domain}.{name}" for domain, name, _ in list(graph.model.functions)[:SHOWN_ERRORS])
        raise BuildFailed(f"the graph has local functions: {shown}; TensorRT mixes up their weights: inline them first")


def build(module: str, request: BuildRequest, workspace: int | None = None, notes: tuple[str, ...] = ()) -> Built:
    """Compile `request.graph_path` with `module` ("tensorrt" or "tensorrt_rtx") into `request.directory`/engine.plan.

    workspace: bytes of scratch memory the builder may plan with; None for all. Raises BuildFailed when the compiler refuses or
    crashes, a GEMM runs in another type, or weights are missing; InputError for branches that it builds nothing of; Missing when
    the module cannot be imported.
    """
    _require_unique_names(request.graph)
    _branches.require_half_outside(request.graph, request.precision)
    plan = request.directory / PLAN
    with scratch() as folder:
        try:
            result, log = _compile(module, request, workspace, folder)
            kernels = _kernels.parse_kernels(log)
            facts = _facts(request, result, log, kernels)
        except BaseException:
            plan.unlink(missing_ok=True)
            raise
    return Built({PLAN: result["sha256"]}, facts, (*notes, *result["notes"]), result["seconds"])


def list_kernels(module: str, request: BuildRequest) -> tuple[_kernels.Kernel, ...]:
    """Build an engine, list its kernels, discard it; of a graph of fixed sizes every dimension is a number. Raises as build."""
    with scratch() as folder:
        _, log = _compile(module, dataclasses.replace(request, directory=folder), None, folder)
    return _kernels.parse_kernels(log)


def _facts(request: BuildRequest, result: Mapping[str, Any], log: str, kernels: Sequence[_kernels.Kernel]) -> dict[str, Any]:
    modules = {_kernels.node_name(n): module_path(n) for n in request.graph.model.graph.all_nodes()}
    first = [k for k in kernels if k.profile == 0]
    on_gpu = [k for k in first if not k.host]
    layers, rows = _kernels.kernels_per_layer(first, modules), _kernels.kernel_rows(kernels, modules)
    return {
        "sms": list(request.sms),
        "tf32": result["tf32"],
        "kernels": {"count": len(on_gpu), "host": len(first) - len(on_gpu), **layers, "rows": rows},
        "gemms": _kernels.check_gemms(request.graph, kernels, request.precision) | _int8.check_quantised(request.graph, kernels),
        **_weights.check_constants(request.graph, kernels, _weights.stored_bytes(log) or result["nbytes"]),
        "engine_bytes": result["nbytes"],
        **({"plugins": result["plugins"]} if result["plugins"] else {}),
        "builder_version": result["version"],
        "warnings": list(dict.fromkeys(re.findall(r"^(?:\[WARNING\]|WARNING:) (.*)$", log, re.MULTILINE))),
    }


def _require_unique_names(graph: Graph) -> None:
    """The builder's metadata names nodes and nothing else: with a name used twice, nothing about either can be proven."""
    seen: set[str] = set()
    for node in graph.model.graph.all_nodes():
        name = _kernels.node_name(node)
        if name in seen:
            raise BuildFailed(f"two nodes are named {name!r}; the builder's log tells nodes apart by name: rename one")
        seen.add(name)


def _compile(module: str, request: BuildRequest, workspace: int | None, folder: Path) -> tuple[dict[str, Any], str]:
    """Run the worker; returns its result and the builder's log with the worker's stderr behind it."""
    paths = {name: str(folder / name) for name in ("log", "result")}
    shapes = [{spec.name: profiles_.profile_shapes(spec, p) for spec in request.graph.inputs} for p in request.profiles]
    job = {
        "module": module,
        "graph": str(request.graph_path.resolve()),
        "plan": str((request.directory / PLAN).resolve()),
        "parent": os.getpid(),
        "sms": list(request.sms),
        "workspace": workspace,
        "timing_cache": str(request.timing_cache) if request.timing_cache else None,
        "profiles": shapes,
        "plugins": _plugins.used(request.graph),
        "sm": next((sm for _, sm in packages.gpus()), None),
        **paths,
    }
    job_path = folder / "job.json"
    job_path.write_text(json.dumps(job), encoding="utf-8")
    stderr_path = folder / "stderr"
    with stderr_path.open("wb") as stderr:
        code = _run_worker(job_path, stderr)
    log = "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in (Path(paths["log"]), stderr_path) if p.exists())
    sms = f" for {', '.join(request.sms)}" if request.sms else ""
    what = f"{module} ({request.precision}{sms})"
    if code != 0:
        raise BuildFailed(f"{what} crashed: {_ending(code)}. {_last_words(log)}{_hint(log)}")
    result = json.loads(Path(paths["result"]).read_text(encoding="utf-8"))
    if result["stage"] != "done":
        raise _refusal(what, result, request.graph)
    return result, log


def _run_worker(job_path: Path, stderr: Any) -> int:
    """The worker's exit code, negative for a signal. Whatever ends the wait, Ctrl-C included, ends the worker."""
    command = [sys.executable, "-P", "-m", f"{__package__}.worker", str(job_path)]
    process = subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """A child must find the same packages, however this one was put on the path: wheel, editable install or PYTHONPATH."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}


def _ending(code: int) -> str:
    if code > 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was ended by signal {-code}"


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    shown = [line for line in lines if not line.startswith(("[VERBOSE]", "[INFO]"))][-SHOWN_ERRORS:] or lines[-SHOWN_ERRORS:]
    return "Last messages: " + " | ".join(line[:300] for line in shown) if shown else "It left no message."


def _hint(text: str) -> str:
    remedy = advice(text)
    return f"\n  {remedy}" if remedy else ""


def _refusal(what: str, result: Mapping[str, Any], graph: Graph) -> Exception:
    errors = result["errors"]
    if result["stage"] == "import":
        return Missing(f"{what} cannot be loaded: {errors[0]['message']}")
    scoped = [why for e in errors if (why := _branches.scope_refusal(e["message"], graph))]
    if scoped:
        return scoped[0]
    verbs = {"parse": "cannot read the graph", "config": "refused the settings", "build": "failed to build"}
    nodes = {_kernels.node_name(n): n for n in graph.model.graph.all_nodes()}
    lines = [f"  {_described(e, nodes)}{_hint(e['message'])}" for e in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"  and {len(errors) - SHOWN_ERRORS} more")
    return BuildFailed(f"{what} {verbs[result['stage']]}:\n" + "\n".join(lines))


def _described(error: Mapping[str, str], nodes: Mapping[str, ir.Node]) -> str:
    if not error["node"]:
        return str(error["message"])
    node = nodes.get(error["node"])
    place = module_path(node) if node is not None else ""
    return f"node {error['node']!r} ({error['op']}{', ' + place if place else ''}): {error['message']}"


def try_import(module: str) -> tuple[str, str]:
    """(version, '') or ('', why not): imports a module in a process of its own, because a library may abort when it loads."""
    command = [sys.executable, "-P", "-c", f"import {module} as m; print(m.__version__)"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.split()[-1], ""
    lines = done.stderr.strip().splitlines()
    return "", lines[-1] if lines else _ending(done.returncode)


def load(module: str, directory: Path, manifest: Mapping[str, Any]) -> Runner:
    """A runner for `directory`/engine.plan. The target has made sure that a GPU is there. Raises ArtifactError, Missing."""
    _point_polygraphy_at(module)
    from polygraphy.exception import PolygraphyException

    plan = engine_file(directory, manifest, PLAN)
    if not plan.is_file():
        raise ArtifactError(f"{directory} holds no {PLAN}; was it built for {module}?")
    try:
        return TrtRunner(engine_bytes(directory, manifest, PLAN), manifest)
    except PolygraphyException as error:
        raise Missing(
            f"{plan} does not load on {_names(packages.gpus())} with {module} {packages.installed_version(module)}: {error}. "
            "It runs only on the GPUs and the builder version it was built for; build it again here, or install its version"
        ) from error


def _names(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({sm})" for name, sm in found) or "this machine"


def _point_polygraphy_at(module: str) -> None:
    """Polygraphy chooses its TensorRT when it is first imported; one process cannot use both."""
    rtx = module == "tensorrt_rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(rtx))
    try:
        from polygraphy import config
    except ImportError as error:
        raise Missing(f"running a {module} engine needs polygraphy ({error}); pip install polygraphy") from error
    if bool(config.USE_TENSORRT_RTX) != rtx:
        raise Missing(f"polygraphy already runs another TensorRT in this process; run the {module} engine in its own process")


class TrtRunner(Runner):
    """Runs an engine through Polygraphy, on the first profile whose ranges hold the sizes of the feeds."""

    def __init__(self, plan: bytes, manifest: Mapping[str, Any]) -> None:
        from polygraphy.backend.trt import EngineFromBytes
        from polygraphy.backend.trt import TrtRunner as Polygraphy

        super().__init__(
            [TensorSpec.from_json(s) for s in manifest["inputs"]],
            [TensorSpec.from_json(s) for s in manifest["outputs"]],
            profiles_.profiles_from_json(manifest["profiles"]),
        )
        self._engine = Polygraphy(EngineFromBytes(plan))
        self._engine.activate()
        self._profile = 0

    def _run(self, feeds: Feeds) -> Outputs:
        import numpy as np

        profile = self._profile_for(feeds)
        if profile != self._profile:
            self._engine.set_profile(profile)
            self._profile = profile
        found = self._engine.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
        # The runner reuses its buffers: without a copy the next run would change this one's outputs.
        return {spec.name: np.array(found[spec.name]) for spec in self.outputs}

    def _profile_for(self, feeds: Feeds) -> int:
        for index, profile in enumerate(self.profiles):
            if all(_fits(spec, feeds[spec.name].shape, profile) for spec in self.inputs):
                return index
        return 0

    def close(self) -> None:
        """Free the engine and its buffers on the GPU."""
        self._engine.deactivate()


def _fits(spec: TensorSpec, shape: Sequence[int], profile: Profile) -> bool:
    pairs = [(profile[d], size) for d, size in zip(spec.dims, shape, strict=True) if isinstance(d, str) and d in profile]
    return all(r.min <= size <= r.max for r, size in pairs)
