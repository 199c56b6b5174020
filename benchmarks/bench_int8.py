"""INT8: accuracy, engines and time, beside ONNX Runtime's quantiser and modelopt

all-MiniLM-L6-v2. 1,000 texts calibrate (bertc keeps every fourth batch of them to judge by), {count} others are what accuracy is
measured on, cut to 256 tokens, against the float32 source. Graphs for TensorRT-RTX run on the reference, which rounds where they
round (no engine was executed); the rest runs in ONNX Runtime on this CPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

import bertc
from bertc import data, fuse, quant, targets
from bertc.confidence import Measure
from bertc.graph import Graph, load
from bertc.metrics import Comparison, Result
from bertc.quant.insert import insert
from bertc.quant.quantise import Quantised
from bertc.quant.sites import ATTENTION
from bertc.reference import ReferenceRunner
from bertc.runner import Feeds, Outputs
from bertc.source import Source, open_source
from bertc.value_ranges import Evidence

from . import int8_engines as engines
from . import int8_peers as peers
from .bench_calibrate import exported, plain
from .real_text import sentences
from .tools import MODEL, table

CALIBRATED, EVALUATED, LONGEST, BATCH = 1000, 2000, 256, 16
MAX_DROP = 0.005
FEW = 100
TASK = "sentence-embedding"
Run = Callable[[Feeds], Outputs]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all parts share."""

    folder: Path
    model: Path
    texts: Path
    source: Source
    samples: tuple[data.Sample, ...]
    truth: tuple[Outputs, ...]

    @property
    def calibration(self) -> list[str]:
        return self.texts.read_text("utf-8").splitlines()


def run() -> str:
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [_said(part) for part in _parts(_setting(folder))]
    load_of = f"{before:.1f} before, {os.getloadavg()[0]:.1f} after (one minute's average)"
    busy = f"Load of the machine's {os.cpu_count()} cores: {load_of}. It was busy with other work: times are rough."
    about = (__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip().replace("{count}", f"{EVALUATED:,}")
    return "\n\n".join([about, *parts, busy])


def _said(text: str) -> str:
    print(text, file=sys.stderr, flush=True)
    return text


def _setting(folder: Path) -> Setting:
    model = exported(MODEL, folder / "minilm")
    found = sentences(CALIBRATED + EVALUATED)
    texts = folder / "texts.txt"
    texts.write_text("\n".join(found[:CALIBRATED]), "utf-8")
    source = open_source(str(model))
    judged = sorted(found[CALIBRATED:], key=len)  # of like length side by side: less padding
    samples = tuple(peers.batches(source, judged, BATCH, LONGEST))
    answer = in_runtime(model)
    return Setting(folder, model, texts, source, samples, tuple(answer(sample.feeds) for sample in samples))


def _parts(setting: Setting):  # type: ignore[no-untyped-def]
    built, seconds = build(setting)
    forms = Forms.of(setting)
    yield accuracy(setting, forms, built)
    yield curve(setting, forms)
    yield engine_part(setting, forms)
    yield times(setting, seconds)


# What runs


def in_runtime(path: Path) -> Run:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def judged(setting: Setting, answer: Run) -> Result:
    comparison = Comparison(TASK, intervals=True)
    for sample, expected in zip(setting.samples, setting.truth, strict=True):
        comparison.add(expected, {name: array.astype("float32") for name, array in answer(sample.feeds).items()}, sample)
    return comparison.result()


def row(name: str, share: str, result: Result) -> list[str]:
    cosine, *kept = result.measures
    return [name, share, told(cosine, 5), f"{result.outputs[0].cosine_min:.4f}", "; ".join(told(each, 4) for each in kept)]


def told(measure: Measure, digits: int) -> str:
    """The artifact's value with the interval of its drop taken from the source's."""
    if measure.low is None or measure.high is None:
        return f"{measure.artifact:.{digits}f}"
    return f"{measure.artifact:.{digits}f} ({1 - measure.high:.{digits}f} to {1 - measure.low:.{digits}f})"


# bertc


def build(setting: Setting) -> tuple[dict[str, Path], dict[str, float]]:
    """`bertc build --int8` for both targets with the limit, and once without for its times: artifacts, seconds of its stages."""
    made = {}
    for target in ("tensorrt-rtx:sm89", "onnxruntime"):
        made[target] = setting.folder / target.partition(":")[0]
        options = {"precision": "int8", "data": str(setting.texts), "budget": {"max_drop": MAX_DROP}}
        bertc.build(str(setting.model), made[target], targets=[target], **options)
    timed = setting.folder / "timed"
    bertc.build(str(setting.model), timed, targets=["tensorrt-rtx:sm89"], precision="int8", data=str(setting.texts))
    return made, json.loads((timed / "report.json").read_text("utf-8"))["stages"]


@dataclasses.dataclass(frozen=True)
class Forms:
    """The lowered graph, everything fitted, and the typed graphs of the pure forms."""

    lowered: Graph
    quantised: Quantised
    evidence: Evidence
    fp16: Graph
    gemms: Graph
    everything: Graph

    @staticmethod
    def of(setting: Setting) -> Forms:
        source, target = setting.source, targets.get("tensorrt-rtx")
        fused = fuse.fuse(source.graph, source.dims).graph
        lowered = target.lower(fused, (engines.SM,), quantised=True)
        request = quant.Request(setting.texts, 0.0, (), target.INT8_ATTENTION)
        quantised = quant.quantise(lowered, source, dataclasses.replace(request, max_drop=None), lambda done, total: None)
        evidence = Evidence(data.synthetic(source.graph, source.dims, 0), "synthetic samples")
        linears = [each for each in quantised.chosen if each.site.kind != ATTENTION]
        made = [
            engines.typed(target.lower(fused, (engines.SM,)), source, evidence, "fp16"),
            engines.typed(insert(lowered, linears), source, evidence),
            engines.typed(quantised.graph, source, evidence),
        ]
        return Forms(lowered, quantised, evidence, *made)

    def share(self, attention: bool) -> str:
        sites = self.quantised.document["sites"]
        return f"{100 * sum(s['flops_share'] for s in sites if attention or s['kind'] != ATTENTION):.1f} %"


def accuracy(setting: Setting, forms: Forms, built: dict[str, Path]) -> str:
    start = time.perf_counter()
    rows = [row("bertc fp16 (tensorrt-rtx)", "0 %", judged(setting, ReferenceRunner(forms.fp16).run))]
    for name, path in built.items():
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        answer = ReferenceRunner(load(path / "graph.onnx")).run if "rtx" in name else in_runtime(path / "model.onnx")
        share = f"{100 * manifest['int8']['share']:.1f} %"
        rows.append(row(f"bertc --int8 --max-drop {MAX_DROP} ({name.partition(':')[0]})", share, judged(setting, answer)))
    rows.append(row("bertc, GEMMs with weights only", forms.share(False), judged(setting, ReferenceRunner(forms.gemms).run)))
    rows.append(row("bertc, all GEMMs and attention", forms.share(True), judged(setting, ReferenceRunner(forms.everything).run)))
    rows += of_peers(setting)
    seconds = f"{len(rows)} graphs on {EVALUATED:,} texts took {time.perf_counter() - start:.0f} s."
    head = ["graph", "int8, of the GEMM FLOPs", "mean cosine (95 % interval)", "lowest", "nearest neighbour kept (95 %)"]
    return table(head, rows) + f"\n\n{seconds}"


def of_peers(setting: Setting) -> list[list[str]]:
    """ONNX Runtime's quantiser and modelopt, on the same export; a peer that fails is a row with its reason."""
    folder, source, texts = setting.folder, setting.source, setting.calibration
    makers: dict[str, Callable[[Path], object]] = {
        "onnxruntime quantize_dynamic, per channel": lambda out: peers.dynamic(setting.model, out),
        "onnxruntime quantize_static, MinMax": lambda out: peers.static(setting.model, out, source, texts, "MinMax"),
        f"onnxruntime quantize_static, Percentile, {FEW} texts (it keeps every tensor of all)": lambda out: peers.static(
            setting.model, out, source, texts[:FEW], "Percentile"
        ),
        "modelopt.onnx, max": lambda out: peers.modelopt(setting.model, out, source, texts, "max"),
        "modelopt.onnx, entropy": lambda out: peers.modelopt(setting.model, out, source, texts, "entropy"),
    }
    rows = []
    for at, (name, make) in enumerate(makers.items()):
        out = folder / f"peer{at}.onnx"
        try:
            made = make(out)
        except Exception as error:  # noqa: BLE001  a peer raises whatever it likes
            rows.append([name, "-", " ".join(str(error).split())[:200], "-", "-"])
            continue
        answer = ReferenceRunner(load(out)).run if "modelopt" in name else in_runtime(out)
        rows.append(row(name, "-", judged(setting, answer)))
        if isinstance(made, tuple):
            (folder / f"{name}.json").write_text(json.dumps(made))
            out.replace(folder / f"{name}.onnx")
        _said(str(rows[-1]))
    return rows


def curve(setting: Setting, forms: Forms) -> str:
    """The search's own curve: float32 with Q/DQ pairs, on the rows that judge."""
    request = quant.Request(setting.texts, MAX_DROP, (), True)
    document = quant.quantise(forms.lowered, setting.source, request, lambda done, total: None).document
    rows = []
    for point in document["curve"]:
        kept = next(value for name, value in point["measures"].items() if name.startswith("kept:"))
        interval = f"{point['low']:.5f} to {point['high']:.5f}"
        rows.append([f"{100 * point['share']:.1f} %", f"{point['value']:.5f}", interval, f"{kept:.4f}"])
    why = f"{document['why'][:1].upper()}{document['why'][1:]}"
    head = f"The curve of the search, on {document['data']['judged']} texts that calibrated nothing. {why}.\n\n"
    return head + table(["int8, of the GEMM FLOPs", "mean cosine", "95 % interval", "nearest neighbour kept"], rows)


# Engines and time


def engine_part(setting: Setting, forms: Forms) -> str:
    half = engines.engine(forms.fp16, "fp16", setting.source)
    whole = engines.engine(forms.everything, "int8", setting.source)
    gemms = engines.engine(forms.gemms, "int8", setting.source)
    rows = [half.row("fp16"), gemms.row("int8, GEMMs with weights only"), whole.row("int8, all GEMMs and attention")]
    path = setting.folder / "modelopt.onnx, max.onnx"
    found = engines.of_peer(path, setting.source) if path.is_file() else "not there"
    rows.append(["modelopt.onnx, max", *(found if isinstance(found, list) else ["-", found, "-", "-"])])
    best = min(half.count, whole.count)
    mixed = engines.mixed(forms.lowered, forms.quantised.chosen, setting.source, forms.evidence, best)
    return f"Engines by TensorRT-RTX for {engines.SM}:\n\n{table(engines.HEAD, rows)}\n\nMixed plans:\n\n{mixed}"


def times(setting: Setting, stages: dict[str, float]) -> str:
    own = {name.partition(": ")[2]: seconds for name, seconds in stages.items() if ": " in name}
    start = time.perf_counter()
    session = ort.InferenceSession(str(setting.model), providers=["CPUExecutionProvider"])
    plain(session, setting.source, setting.texts, 1)
    once = time.perf_counter() - start
    parts = [own[name] for name in ("quantise", "precision", "verify")]
    rows = [[name, f"{own[name]:.1f}", f"{own[name] / once:.2f}"] for name in ("quantise", "precision", "verify", "compile")]
    rows.append(["one float32 run over the texts, one at a time", f"{once:.1f}", "1"])
    lines = []
    for method in ("max", "entropy"):
        path = setting.folder / f"modelopt.onnx, {method}.json"
        if not path.is_file():
            lines.append(f"modelopt.onnx, {method}: not there.")
            continue
        version, seconds = json.loads(path.read_text())
        rows.append([f"modelopt.onnx {version}, {method}: its quantize call", f"{seconds:.1f}", f"{seconds / once:.2f}"])
        ratios = ", ".join(f"{sum(parts[:n]) / seconds:.2f}" for n in (1, 2, 3))
        lines.append(f"bertc by modelopt {method}: {ratios} (quantise; and precision; and verify); wanted: at most 0.75.")
    head = f"Seconds, each measured once, {CALIBRATED:,} texts, no limit given (`bertc build --int8` after the export):\n\n"
    return head + table(["part", "seconds", "by the float32 run"], rows) + "\n\n" + "\n".join(lines)
