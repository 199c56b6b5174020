"""What an artifact is timed against: another artifact, PyTorch eager, torch.compile, and ONNX Runtime on the exported graph.

A contender is prepared once a shape, untimed: inputs cast to its types, code compiled. Timed is one call, inputs and
outputs in host memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import targets
from ..artifact import Artifact
from ..artifact import manifest as artifact
from ..core import Feeds, Outputs, counted
from ..data import Sample
from ..graph import Graph, save_graph
from ..runtime import Runner
from ..source import GivenSource, open_module, open_source, options_for

if TYPE_CHECKING:
    from ..source import FactoryModel

Call = Callable[[], Any]
GPU_TARGETS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that can be timed. `prepare` makes the call for some feeds, `outputs` arrays of what the call returned.

    Its outputs are judged by the budget of `precision`; `description` says what it is.
    """

    name: str
    precision: str
    prepare: Callable[[Feeds], Call]
    outputs: Callable[[Any], Outputs]
    description: str = ""
    source: bool = False  # the model itself, not an artifact: the others are compared with it
    packing: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a packed artifact: its outputs are 0 at padding


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A baseline that is not timed, and the reason."""

    name: str
    reason: str


@contextlib.contextmanager
def torch_threads(count: int, enabled: bool = True) -> Iterator[None]:
    """PyTorch, if it is installed and this is `enabled`, uses `count` threads in the block."""
    try:
        torch = importlib.import_module("torch") if enabled else None
    except ImportError:
        torch = None
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def artifact_contender(found: Artifact, count: int, name: str = "", *, padded: bool = False) -> Contender:
    """An artifact on `count` threads; `padded`: each call padded to its buckets. Raises Missing where it cannot run here."""
    runner = targets.get(found.target).load(found.path, with_threads(found.manifest, count))
    runner.tokenizer, runner.index_bounds = found.tokenizer, found.index_bounds
    description = f"{found.target}, {found.precision}" + (", each call padded to the smallest bucket" if padded else "")
    run = runner.run_padded if padded else runner.run
    packing = found.manifest.get("packing")
    description += ", without padding" if packing else ""
    made = _of_runner(name or found.path.name, found.precision, runner, run, description)
    return dataclasses.replace(made, packing=packing) if isinstance(packing, dict) else made


def with_threads(manifest: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The manifest with that many threads in its ONNX Runtime session; of another target, as it is."""
    engine = dict(manifest["engine"])
    if "session" in engine:
        engine["session"] = {**engine["session"], "intra_op_num_threads": count}
    return {**manifest, "engine": engine}


def _of_runner(name: str, precision: str, runner: Runner, run: Callable[[Feeds], Outputs], description: str) -> Contender:
    def prepare(feeds: Feeds) -> Call:
        mine = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.inputs}
        return lambda: run(mine)

    return Contender(name, precision, prepare, lambda result: dict(result), description)


def open_contenders(given: GivenSource, found: Artifact, samples: Sequence[Sample], count: int, folder: Path) -> Any:
    """Contenders and Skipped for an --against: an artifact, or a source with its baselines.

    `found` is the artifact under test; an exported graph is written to `folder`. Raises what opening the reference raises.
    """
    reference, options = given.reference, options_for(found, given)
    if (Path(reference) / artifact.MANIFEST).is_file():
        other = artifact.open_artifact(Path(reference))
        if other.target != "null":
            ready = targets.get(other.target).available()
            if not ready.run:
                return [Skipped(str(reference), f"target {other.target} cannot run here: {ready.reason}")]
            return [artifact_contender(other, count, str(reference))]
    if found.target in GPU_TARGETS:
        why = "it runs on the CPU and this engine on a GPU; give another artifact of a GPU"
        return [Skipped(name, why) for name in ("PyTorch", "ONNX Runtime, unfused")]
    made = open_module(reference, options)
    if made is None:
        why = f"{reference} is a graph, not a PyTorch model"
        skipped = [Skipped(name, why) for name in ("PyTorch eager", "torch.compile")]
        return [*skipped, unfused(open_source(reference, options).graph, count, folder)]
    from ..source import torch_export

    graph, outputs = torch_export.export_module(made, options.opset)
    return [eager(made, outputs), compiled(made, outputs, samples), unfused(graph, count, folder)]


def unfused(graph: Graph, count: int, folder: Path) -> Contender | Skipped:
    """ONNX Runtime on the exported graph, with ONNX Runtime's own optimiser."""
    from ..targets import onnxruntime as target

    name = "ONNX Runtime, unfused"
    ready = target.available()
    if not ready.run:
        return Skipped(name, f"{ready.reason}. {ready.install}")
    save_graph(graph, folder / "source.onnx")
    manifest = {
        "inputs": [spec.to_json() for spec in graph.inputs],
        "outputs": [spec.to_json() for spec in graph.outputs],
        "profiles": [],
        "engine": {"session": target.SESSION},
    }
    runner = target.OnnxRuntimeRunner(folder / "source.onnx", with_threads(manifest, count))
    description = f"the exported graph, float32, {target.SESSION['graph_optimization_level']}"
    return dataclasses.replace(_of_runner(name, "fp32", runner, runner.run, description), source=True)


def eager(made: FactoryModel, outputs: Sequence[str]) -> Contender:
    """The PyTorch module itself."""
    import torch

    description = f"float32, torch {torch.__version__}, inference mode"
    return dataclasses.replace(_of_module("PyTorch eager", made, made.module, outputs, description), source=True)


def compiled(made: FactoryModel, outputs: Sequence[str], samples: Sequence[Sample]) -> Contender | Skipped:
    """torch.compile with its defaults, compiled for each shape by itself, which gives its fastest code."""
    import torch

    from ..source import quiet, root_cause

    name = "torch.compile"
    start = time.perf_counter()
    contender = _of_module(name, made, torch.compile(made.module, dynamic=False), outputs, "")
    try:
        # One more than there are shapes: with fewer the last one silently runs eager.
        with torch._dynamo.config.patch(recompile_limit=len(samples) + 1, fail_on_recompile_limit_hit=True), quiet():
            for sample in samples:
                contender.prepare(sample.feeds)()
    except Exception as error:  # noqa: BLE001 - whatever torch's compiler, or the C++ compiler below it, raises
        return Skipped(name, f"it does not compile here: {root_cause(error)}")
    took = time.perf_counter() - start
    description = f"float32, defaults, compiled for {counted(len(samples), 'shape')} in {took:.0f} s (not timed)"
    return dataclasses.replace(contender, description=description)


def _of_module(name: str, made: FactoryModel, module: Any, outputs: Sequence[str], description: str) -> Contender:
    import torch

    from ..source import torch_export

    def prepare(feeds: Feeds) -> Call:
        args, kwargs = torch_export.module_arguments(made, feeds)

        def call() -> Any:
            with torch.inference_mode():
                return module(*args, **kwargs)

        return call

    return Contender(name, "fp32", prepare, lambda result: torch_export.outputs_to_arrays(result, outputs), description)
