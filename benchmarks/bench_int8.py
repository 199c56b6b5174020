"""INT8: accuracy, engines and time, beside ONNX Runtime's quantiser and modelopt

all-MiniLM-L6-v2. 1,000 texts calibrate (bertc keeps every fourth batch of them to judge by); 2,000 others are what accuracy is
measured on, cut to 256 tokens, against the float32 source. Graphs for TensorRT-RTX run on the reference, which rounds where they
round (no engine was executed); the rest runs in ONNX Runtime on this CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnxruntime as ort

import bertc
from bertc import quant, targets
from bertc.core import profiles
from bertc.core.tensors import Feeds, Outputs
from bertc.data import samples as samples_module
from bertc.data import synthetic as data
from bertc.fusions import engine as fuse
from bertc.graph.model import Graph, load_graph
from bertc.precision._value_ranges import Evidence
from bertc.quant import StaticGraph
from bertc.quant.fit import Fitted
from bertc.quant.insert import insert_qdq
from bertc.quant.sites import ATTENTION
from bertc.runtime.reference import ReferenceRunner
from bertc.source.opening import open_source
from bertc.source.types import Source, SourceOptions
from bertc.verification.comparison import Comparison
from bertc.verification.intervals import Metric
from bertc.verification.result import ComparisonResult

from . import int8_engines as engines
from . import int8_peers as peers
from .bench_calibrate import exported, plain
from .real_text import sentences
from .tools import MODEL, table

CALIBRATED, EVALUATED, LONGEST, BATCH = 1000, 2000, 256, 16
QUIET = 1.0  # load before the first part
MAX_DROP = 0.005
MIXED = """Mixed plans: a random half of the sites, against the better of the two pure forms and one kernel more a boundary, where
the precision of consecutive sites changes."""
FEW = 32  # for the percentile calibrator, which keeps every tensor of all texts and wants them of one shape
METHODS = ("max", "entropy")
TASK = "sentence-embedding"
Run = Callable[[Feeds], Outputs]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all parts share."""

    folder: Path
    model: Path
    texts: Path
    source: Source
    samples: tuple[samples_module.Sample, ...]
    truth: tuple[Outputs, ...]

    @property
    def calibration(self) -> list[str]:
        return self.texts.read_text("utf-8").splitlines()


def run() -> str:
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        parts = [_said(part) for part in _parts(_setting(Path(name)))]
    load_of = f"{before:.1f} before, {os.getloadavg()[0]:.1f} after (one minute's average)"
    rough = " It was busy with other work: times are rough." if before > QUIET else ""
    busy = f"Load of the machine's {os.cpu_count()} cores: {load_of}.{rough}"
    return "\n\n".join([(__doc__ or "").split("\n\n", 1)[1].strip(), *parts, busy])


def _said(text: str) -> str:
    """A part as it is done: all of them take a while."""
    print(text, file=sys.stderr, flush=True)
    return text


def _setting(folder: Path) -> Setting:
    model = exported(MODEL, folder / "minilm")
    found = sentences(CALIBRATED + EVALUATED)
    texts = folder / "texts.txt"
    texts.write_text("\n".join(found[:CALIBRATED]), "utf-8")
    source = open_source(str(model), SourceOptions(task=TASK))
    judged = sorted(found[CALIBRATED:], key=len)  # of like length side by side: less padding
    samples = tuple(peers.batches(source, judged, BATCH, LONGEST))
    answer = in_runtime(model)
    return Setting(folder, model, texts, source, samples, tuple(answer(sample.feeds) for sample in samples))


def _parts(setting: Setting) -> Iterator[str]:
    """Times first, while the machine is as it was found."""
    yield times(setting, build(setting, setting.folder / "everything", "tensorrt-rtx:sm89", {}))
    build(setting, setting.folder / "onnxruntime", "onnxruntime", {"max_drop": MAX_DROP})
    forms = Forms.of(setting)
    yield curve(forms)
    yield engine_part(setting, forms)
    yield accuracy(setting, forms)


# What runs


def in_runtime(path: Path) -> Run:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def judged(setting: Setting, answer: Run) -> ComparisonResult:
    comparison = Comparison(TASK, intervals=True)
    for sample, expected in zip(setting.samples, setting.truth, strict=True):
        comparison.add(expected, {name: array.astype("float32") for name, array in answer(sample.feeds).items()}, sample)
    return comparison.result()


def row(name: str, share: str, result: ComparisonResult) -> list[str]:
    cosine, *kept = result.metrics
    found = [name, share, told(cosine, 5), f"{result.outputs[0].cosine_min:.4f}", "; ".join(told(each, 4) for each in kept)]
    _said(str(found))
    return found


def told(measure: Metric, digits: int) -> str:
    """The artifact's value with the interval of its drop taken from the source's."""
    if measure.low is None or measure.high is None:
        return f"{measure.artifact:.{digits}f}"
    return f"{measure.artifact:.{digits}f} ({1 - measure.high:.{digits}f} to {1 - measure.low:.{digits}f})"


# bertc


def build(setting: Setting, out: Path, target: str, budget: Mapping[str, float]) -> dict[str, float]:
    """`bertc build --int8`; the seconds of its stages."""
    bertc.build(
        str(setting.model), out, targets=[target], precision="int8-static", data=str(setting.texts), task=TASK, budget=budget
    )
    return dict(json.loads((out / "report.json").read_text("utf-8"))["stages"])


@dataclasses.dataclass(frozen=True)
class Forms:
    """The lowered graph, all sites fitted, what the search chose, and the typed graphs of the pure forms."""

    lowered: Graph
    fitted: tuple[Fitted, ...]
    searched: StaticGraph
    evidence: Evidence
    fp16: Graph
    gemms: Graph
    everything: Graph

    @staticmethod
    def of(setting: Setting) -> Forms:
        source, target = setting.source, targets.get("tensorrt-rtx")
        fused = fuse.fuse(source.graph, source.dims).graph
        lowered = target.lower(fused, (engines.SM,), quantised=True)
        ranges = (profiles.parse_profile("", source.dims),)
        request = quant.LowBitRequest(
            "int8-static", "tensorrt-rtx", "fp16", target.INT8_ATTENTION, setting.texts, MAX_DROP, ranges
        )
        searched = whole = quant.quantise_static(lowered, source, request, quiet)
        if len(searched.chosen) < len(searched.document["sites"]):
            whole = quant.quantise_static(lowered, source, dataclasses.replace(request, max_drop=None), quiet)
        evidence = Evidence(data.synthetic_samples(source.graph, source.dims, 0), "synthetic samples")
        linears = [each for each in whole.chosen if each.site.kind != ATTENTION]
        made = [
            engines.typed(target.lower(fused, (engines.SM,)), source, evidence, "fp16"),
            engines.typed(insert_qdq(lowered, linears), source, evidence),
            engines.typed(whole.graph, source, evidence),
        ]
        return Forms(lowered, whole.chosen, searched, evidence, *made)

    def share(self, attention: bool) -> str:
        sites = self.searched.document["sites"]
        return f"{100 * sum(s['flops_share'] for s in sites if attention or s['kind'] != ATTENTION):.1f} %"


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


def accuracy(setting: Setting, forms: Forms) -> str:
    start = time.perf_counter()
    limit, everything = f"bertc --int8 --max-drop {MAX_DROP} (tensorrt-rtx)", "bertc, all GEMMs and attention (tensorrt-rtx)"
    rows = []
    if len(forms.searched.chosen) == len(forms.fitted):
        everything = f"{limit}, which keeps all GEMMs and attention"
    else:
        graph = engines.typed(forms.searched.graph, setting.source, forms.evidence)
        rows.append(row(limit, share_of(forms.searched.document), judged(setting, ReferenceRunner(graph).run)))
    rows.append(row(everything, forms.share(True), judged(setting, ReferenceRunner(forms.everything).run)))
    rows.append(row("bertc, GEMMs with weights only", forms.share(False), judged(setting, ReferenceRunner(forms.gemms).run)))
    own = setting.folder / "onnxruntime"
    share = share_of(json.loads((own / "manifest.json").read_text("utf-8"))["int8"])
    rows.append(row(f"bertc --int8 --max-drop {MAX_DROP} (onnxruntime)", share, judged(setting, in_runtime(own / "model.onnx"))))
    rows += of_peers(setting)
    seconds = f"{len(rows)} graphs on {EVALUATED:,} texts took {time.perf_counter() - start:.0f} s, peers' own work included."
    head = ["graph", "int8, of the GEMM FLOPs", "mean cosine (95 % interval)", "lowest", "nearest neighbour kept (95 %)"]
    return f"Accuracy:\n\n{table(head, rows)}\n\n{seconds}"


def share_of(document: Mapping[str, float]) -> str:
    return f"{100 * document['share']:.1f} %"


def of_peers(setting: Setting) -> list[list[str]]:
    """ONNX Runtime's quantiser and modelopt, on the same export; a peer that fails is a row with its reason."""
    source, texts = setting.source, setting.calibration
    makers: dict[str, Callable[[Path], object]] = {
        "onnxruntime quantize_dynamic, per channel": lambda out: peers.dynamic(setting.model, out),
        "onnxruntime quantize_static, MinMax": lambda out: peers.static(setting.model, out, source, texts, "MinMax"),
        f"onnxruntime quantize_static, Percentile, {FEW} texts": lambda out: peers.static(
            setting.model, out, source, texts[:FEW], "Percentile", FEW
        ),
    }
    for method in METHODS:
        makers[f"modelopt.onnx, {method}"] = lambda out, method=method: by_modelopt(setting, method, out)  # type: ignore[misc]
    rows = []
    for at, (name, make) in enumerate(makers.items()):
        out = setting.folder / f"peer{at}.onnx"
        try:
            make(out)
        except Exception as error:  # noqa: BLE001  a peer raises whatever it likes
            rows.append([name, "-", " ".join(str(error).split())[:200], "-", "-"])
            continue
        rows.append(
            row(name, "-", judged(setting, ReferenceRunner(load_graph(out)).run if "modelopt" in name else in_runtime(out)))
        )
    return rows


def by_modelopt(setting: Setting, method: str, out: Path | None = None) -> tuple[str, float]:
    """Its version and the seconds of its call, which is made once; the graph is copied to `out`."""
    path, known = setting.folder / f"modelopt-{method}.onnx", setting.folder / f"modelopt-{method}.json"
    if not known.is_file():
        known.write_text(json.dumps(peers.modelopt(setting.model, path, setting.source, setting.calibration, method)))
    if out is not None:
        shutil.copy(path, out)
    version, seconds = json.loads(known.read_text())
    return version, seconds


def curve(forms: Forms) -> str:
    """The search's own curve: float32 with Q/DQ pairs, on the rows that judge."""
    document = forms.searched.document
    rows = []
    for point in document["curve"]:
        kept = next((value for name, value in point["measures"].items() if name.startswith("kept:")), float("nan"))
        interval = f"{point['low']:.5f} to {point['high']:.5f}"
        rows.append([f"{100 * point['share']:.1f} %", f"{point['value']:.5f}", interval, f"{kept:.4f}"])
    why = f"{document['why'][:1].upper()}{document['why'][1:]}"
    head = f"The curve of the search, on {document['data']['judged']} held-out texts. {why}.\n\n"
    return head + table(["int8, of the GEMM FLOPs", "mean cosine", "95 % interval", "nearest neighbour kept"], rows)


# Engines and time


def engine_part(setting: Setting, forms: Forms) -> str:
    half = engines.engine(forms.fp16, "fp16", setting.source)
    whole = engines.engine(forms.everything, "int8", setting.source)
    gemms = engines.engine(forms.gemms, "int8", setting.source)
    rows = [half.row("fp16"), gemms.row("int8, GEMMs with weights only"), whole.row("int8, all GEMMs and attention")]
    path = setting.folder / "modelopt-max.onnx"
    found = engines.of_peer(path, setting.source) if path.is_file() else "not there"
    rows.append(["modelopt.onnx, max", *(found if isinstance(found, list) else ["-", found, "-", "-"])])
    best = min(half.count, whole.count)
    mixed = engines.mixed(forms.lowered, forms.fitted, setting.source, forms.evidence, best)
    return f"Engines by TensorRT-RTX for {engines.SM}:\n\n{table(engines.HEAD, rows)}\n\n{MIXED}\n\n{mixed}"


def times(setting: Setting, stages: Mapping[str, float]) -> str:
    own = {name.partition(": ")[2]: seconds for name, seconds in stages.items() if ": " in name}
    start = time.perf_counter()
    plain(ort.InferenceSession(str(setting.model), providers=["CPUExecutionProvider"]), setting.source, setting.texts, 1)
    once = time.perf_counter() - start
    parts = [own[name] for name in ("quantise", "precision", "verify")]
    rows = [[name, f"{own[name]:.1f}", f"{own[name] / once:.2f}"] for name in ("quantise", "precision", "verify", "compile")]
    rows.append(["one float32 run over the texts, one at a time", f"{once:.1f}", "1"])
    lines = []
    for method in METHODS:
        try:
            version, seconds = by_modelopt(setting, method)
        except (LookupError, RuntimeError) as why:
            lines.append(f"modelopt.onnx, {method}: {why}.")
            continue
        rows.append([f"modelopt.onnx {version}, {method}: its quantize call", f"{seconds:.1f}", f"{seconds / once:.2f}"])
        ratios = ", ".join(f"{sum(parts[:n]) / seconds:.2f}" for n in (1, 2, 3))
        lines.append(f"bertc by modelopt {method}: {ratios} (quantise; and precision; and verify); wanted: at most 0.75.")
    head = f"Seconds, each measured once, {CALIBRATED:,} texts, no limit given (`bertc build --int8` after the export):\n\n"
    return head + table(["part", "seconds", "by the float32 run"], rows) + "\n\n" + "\n".join(lines)
