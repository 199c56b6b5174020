"""Calibration: its time against the plain run, and its memory

`bertc calibrate` over 1,000 real texts, all of it but the export (reading, measuring, writing the ranges), divided by the time of
running the same float32 model once over them: padded batches of 8 as `bertc verify` reads them, and one text at a time. ONNX
Runtime's optimiser is on in the plain runs; every run tokenises. Peak memory is that of whole processes, over short texts with a
BERT of two layers and width 64: what grows with the number of samples would show against so small a model.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

from bertc.data import files, preprocess
from bertc.graph.model import save_graph
from bertc.quant.calibration import command as calibrate
from bertc.source.opening import open_source
from bertc.source.types import Source

from . import tools
from .real_text import sentences
from .tools import MODEL, table

TEXTS, PAIRS, WANTED = 1000, 3, 2.0
SAMPLES = (100, 100_000)
# A child's ru_maxrss counts what its parent had when it was started; VmHWM is the process's own.
OWN_PEAK = """
import re, sys
from bertc import cli
assert cli.run(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def run() -> str:
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = timed(Path(folder)) + "\n\n" + weighed(Path(folder))
    busy = (
        f"Load of the machine's {os.cpu_count()} cores: {before:.1f} before, {os.getloadavg()[0]:.1f} after (1 minute's average)."
    )
    return f"{found}\n\n{busy}"


def exported(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as an .onnx file with its tokenizer: what is measured opens it in a moment."""
    folder.mkdir()
    source = open_source(str(checkpoint))
    save_graph(source.graph, folder / "model.onnx")
    for file in source.assets:
        shutil.copy(file, folder)
    return folder / "model.onnx"


def timed(folder: Path) -> str:
    texts = folder / "texts.txt"
    texts.write_text("\n".join(sentences(TEXTS)), "utf-8")
    model = exported(MODEL, folder / "minilm")
    source = open_source(str(model))
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    out = folder / "ranges.json"
    runs: dict[str, Callable[[], object]] = {
        "plain, batches of 8": lambda: plain(session, source, texts, 8),
        "plain, one at a time": lambda: plain(session, source, texts, 1),
        "calibrate": lambda: calibrate.calibrate(str(model), calibrate.CalibrationRequest(texts), out, force=True),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(PAIRS + 1):  # one to warm up
        for name in list(runs)[:: 1 if index % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name, found in times.items():
        ratios = [own / other for own, other in zip(times["calibrate"][1:], found[1:], strict=True)]
        rows.append([name, tools.spread(found[1:]), f"{statistics.median(ratios):.2f}"])
    head = f"all-MiniLM-L6-v2, {TEXTS} texts, {PAIRS} interleaved runs; wanted: at most {WANTED:g} times the plain run.\n\n"
    return head + table(["run", "seconds", "calibrate / this"], rows)


def plain(session: ort.InferenceSession, source: Source, texts: Path, batch: int) -> None:
    limits, encoder, _ = preprocess.preprocessors(source.graph.inputs, source.dims, source.assets)
    read = files.samples_from_file(texts, inputs=source.graph.inputs, dims=limits, encode=encoder, batch=batch)
    for sample in read.samples:
        session.run(None, dict(sample.feeds))


def weighed(folder: Path) -> str:
    import torch
    import transformers

    torch.manual_seed(0)
    small = folder / "small"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(small)
    for file in MODEL.glob("*token*.json"):
        shutil.copy(file, small)
    model = exported(small, folder / "small-onnx")
    rows = []
    for count in SAMPLES:
        texts = folder / f"{count}.txt"
        texts.write_text("\n".join(f"text number {i}" for i in range(count)), "utf-8")
        out = str(folder / f"{count}.json")
        words = ["calibrate", str(model), "--data", str(texts), "-o", out]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", OWN_PEAK, *words], stdout=subprocess.PIPE, text=True, check=True)
        rows.append([f"{count:,}", f"{int(done.stdout) / 1024:.0f}", f"{time.perf_counter() - start:.0f}"])
    return "Memory:\n\n" + table(["samples", "peak, MiB", "seconds"], rows)
