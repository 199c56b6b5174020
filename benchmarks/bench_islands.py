"""Float32 islands in fp16, from data

A model built to overflow (`tests/helpers/overflowing.py`: a LayerNorm input of 1e5, a mask of -1e9, a logit of 70,000) and
all-MiniLM-L6-v2, lowered for TensorRT-RTX sm89: without data (rules and constants alone) and with what the values of the
synthetic samples of a build demand. Accuracy is that of the graph with emulated rounding, kernels are those of the compiled
engine; no engine was run. The second table leaves out each island that the data demands, alone
(`benchmarks/island_trials.py`), and says what breaks. Where nothing does, it is there for the margin of a factor of 4,
or is a sum, which the emulation makes in float32 anyway.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks import island_trials
from bertc import precision, targets
from bertc.core.profiles import Range
from bertc.data import preprocess
from bertc.data import synthetic as data
from bertc.fusions import engine as fuse
from bertc.graph.model import Graph, save_graph
from bertc.precision import Typed, _islands, _typed, fp16
from bertc.precision._value_ranges import Evidence, RangeRequest, measure_ranges
from bertc.runtime.reference import ReferenceRunner
from bertc.source import onnx_file as onnx_source
from bertc.source.opening import open_source
from bertc.targets import BuildRequest, tensorrt_rtx
from bertc.verification.comparison import Comparison

from .real_text import sentences
from .tools import MODEL, table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
import overflowing

RTX = targets.parse_spec("tensorrt-rtx:sm89")
TEXTS = 400
SIZES = {"batch": Range(1, 8, 32), "length": Range(1, 128, 256)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model lowered for TensorRT, its samples, and what it answers in float32."""

    name: str
    lowered: Graph
    evidence: Evidence
    outputs: list[dict[str, np.ndarray]]


def case(name: str, graph: Graph, dims: Mapping[str, Any]) -> Case:
    lowered = targets.get(RTX.name).lower(fuse.fuse(graph, dims, prove=False).graph, RTX.sms)
    samples = data.synthetic_samples(graph, dims)
    runner = ReferenceRunner(graph)
    evidence = Evidence(samples, f"{len(samples)} synthetic samples")
    return Case(name, lowered, evidence, [runner.run(sample.feeds) for sample in samples])


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for name, pre_norm in (("overflowing, post-norm", False), ("overflowing, pre-norm", True)):
            cases.append(
                case(name, *onnx_source.read_onnx_file(overflowing.encoder(Path(folder, "m.onnx"), pre_norm=pre_norm))[:2])
            )
        source = open_source(str(MODEL))
        cases.append(case("all-MiniLM-L6-v2", source.graph, source.dims))
        rows = [row for each in cases for row in _rows(each)]
        head = ["model", "islands from", "islands", "past range", "other data", "constants", "free", "kernels", "Half", "Float"]
        found = table([*head, "finite", "cosine (min)", "rel. error"], rows)
        why = table(["model", "island", "operator", "why", "left out"], [row for each in cases for row in _needed(each)])
        cost = _cost(cases[-1])
        return "\n\n".join([_about(), found, why, cost, _margin(cases[-1], source, Path(folder)), _forms()])


def _about() -> str:
    return (__doc__ or "").partition("\n\n")[2].strip()


def _rows(each: Case) -> list[list[str]]:
    return [_row(each, "rules and constants", None), _row(each, each.evidence.name, each.evidence)]


def _row(each: Case, name: str, evidence: Evidence | None) -> list[str]:
    typed = precision.get("fp16").apply(each.lowered, evidence)
    kinds = collections.Counter(island.by for island in typed.plan.islands)
    past = sum(island.kind.startswith("past") for island in typed.plan.islands)
    counts = [len(typed.plan.islands), past, kinds["data"] - past, kinds["constant"], kinds["free"] + kinds["type"]]
    kernels = _kernels(typed)
    types = collections.Counter(row["dtype"] for row in kernels)
    return [each.name, name, *map(str, counts), str(len(kernels)), str(types["Half"]), str(types["Float"]), *_close(each, typed)]


def _close(each: Case, typed: Typed) -> list[str]:
    runner, comparison = ReferenceRunner(typed.graph), Comparison()
    for sample, expected in zip(each.evidence.samples, each.outputs, strict=True):
        comparison.add(expected, runner.run(sample.feeds), sample)
    out = comparison.result().outputs[0]
    broken = out.nonfinite
    return ["no" if broken else "yes", "-" if broken else f"{out.cosine_min:.7f}", "-" if broken else f"{out.relative:.1e}"]


def _kernels(typed: Typed, sizes: Mapping[str, Range] | None = None) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        save_graph(typed.graph, path)
        asked = BuildRequest(typed.graph, path, Path(folder), "fp16", RTX.sms, (sizes or SIZES,))
        return list(tensorrt_rtx.build(asked).facts["kernels"]["rows"])


def _needed(each: Case) -> list[list[str]]:
    tried = island_trials.trials(each.lowered, "fp16", each.evidence, each.outputs)
    return [[each.name, trial.node, trial.op, trial.reason, trial.why or "nothing breaks"] for trial in tried]


def _cost(each: Case) -> str:
    """The pass against a plain run of the same samples, in turns; and what memory it takes beyond what the process held."""
    runner = ReferenceRunner(each.lowered)
    plain, passes = [], []
    for _ in range(5):
        start = time.perf_counter()
        for sample in each.evidence.samples:
            runner.run(sample.feeds)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        measure_ranges(each.lowered, each.evidence.samples, RangeRequest(fp16.HALF.tiny))
        passes.append(time.perf_counter() - start)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS")
    measure_ranges(each.lowered, each.evidence.samples, RangeRequest(fp16.HALF.tiny))
    seconds = f"{np.median(passes):.2f} s, the samples alone {np.median(plain):.2f} s"
    ratio = np.median([a / b for a, b in zip(passes, plain, strict=True)])
    return (
        f"The pass over the values of {each.name} ({each.evidence.name}, up to 512 places): {seconds} (ratio {ratio:.1f}; median "
        f"of 5 in turns, busy machine), {_memory('VmHWM') - before:.0f} MiB more than the process held."
    )


def _memory(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _margin(each: Case, source: Any, folder: Path) -> str:
    """How far real texts take values past what synthetic samples showed, and many texts past what some showed."""
    path = folder / "texts.txt"
    path.write_text("\n".join(sentences(TEXTS)) + "\n", encoding="utf-8")
    texts = preprocess.read_data(path, source.graph.inputs, source.dims, source.assets).samples
    wanted = RangeRequest(fp16.HALF.tiny)
    synthetic, real, some = (measure_ranges(each.lowered, found, wanted) for found in (each.evidence.samples, texts, texts[:5]))

    def furthest(seen: Mapping[str, Any]) -> float:
        held = [name for name in real if 0 < seen[name].largest < 1e30]  # not the mask's
        return max(real[name].largest / seen[name].largest for name in held)

    first = sum(len(sample.origins) for sample in texts[:5])
    return (
        f"The margin: {TEXTS} real texts took a value of {each.name} to {furthest(synthetic):.1f} times its largest magnitude on "
        f"the synthetic samples at most, and to {furthest(some):.1f} times that on the first {first} texts."
    )


HEAD = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,S,64] x) => (float[B,S,64] y) <float[64,64] w, float[64,64] v,
float[64] b, float[64] g, int64[1] last = {-1}, int64 along = {1}, float three = {3.0}, float one = {1.0}>
{ m = MatMul (x, w) z = Add (m, b) BODY y = MatMul (a, v) }"""
CONVOLUTION = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,64,S] x) => (float[B,64,T] y) <float[64,64,3] w,
float[64,64,3] v> { z = Conv <pads = [1, 1]> (x, w) BODY y = Conv <pads = [1, 1]> (a, v) }"""
FORMS = {
    "LayerNormalization": (HEAD, "a = LayerNormalization <axis = -1> (z, g, b)"),
    "Softmax": (HEAD, "a = Softmax <axis = -1> (z)"),
    "ReduceSum": (HEAD, "s = ReduceSum (z, last) a = Mul (z, s)"),
    "ReduceMean": (HEAD, "s = ReduceMean (z, last) a = Sub (z, s)"),
    "GlobalAveragePool": (CONVOLUTION, "s = GlobalAveragePool (z) a = Mul (z, s)"),
    "AveragePool": (CONVOLUTION, "a = AveragePool <kernel_shape = [3], pads = [1, 1]> (z)"),
    "CumSum": (HEAD, "a = CumSum (z, along)"),
    "Pow": (HEAD, "p = Pow (z, three) s = Add (z, p) t = Tanh (s) a = Mul (z, t)"),
    "Exp": (HEAD, "n = Neg (z) e = Exp (n) d = Add (e, one) a = Div (z, d)"),
    "Sqrt": (HEAD, "p = Mul (z, z) e = Add (p, one) r = Sqrt (e) a = Div (z, r)"),
    "Log": (HEAD, "p = Mul (z, z) e = Add (p, one) r = Log (e) a = Mul (z, r)"),
    "Reciprocal": (HEAD, "p = Mul (z, z) e = Add (p, one) r = Reciprocal (e) a = Mul (z, r)"),
}


def _forms() -> str:
    """Kernels of two GEMMs or convolutions with an operator between them, that operator in float32 and in half."""
    sizes = {"B": Range(1, 8, 32), "S": Range(8, 64, 256)}
    rows = []
    for op, (head, body) in FORMS.items():
        graph = _graph(head.replace("BODY", body))
        decided = _islands.decide_islands(graph, fp16.HALF)
        without = dataclasses.replace(decided, islands={node: why for node, why in decided.islands.items() if not why.reason})
        counts = [len(_kernels(_typed.write_typed(graph, fp16.HALF, each), sizes)) for each in (decided, without)]
        free = "free" if op in _islands.REDUCTIONS else "only where data demands it"
        rows.append([op, str(counts[0]), str(counts[1]), free])
    return f"{(_forms.__doc__ or '').strip()}\n\n" + table(["operator", "float32", "half", "as an island"], rows)


def _graph(text: str) -> Graph:
    """ONNX text as a graph; declared values without a number are random weights."""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for info in list(proto.graph.value_info):
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = (rng.standard_normal(shape) / 5).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        proto.graph.value_info.remove(info)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for number, each in enumerate(model.graph):
        each.name = f"{each.op_type}_{number}"
    return Graph(model)
