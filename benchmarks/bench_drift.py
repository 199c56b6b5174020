"""Layer drift and bisection: time and memory

`bertc verify --layers` and `--bisect` of a BERT-base (random weights) built for TensorRT-RTX in float16, from an .onnx file; each
a process of its own. In the broken one the second product of layer 7's feed-forward is 300,000 times as large, which the
normalisation behind it takes back: right in float32, infinite in float16. It is built without a look at any data: with one, bertc
keeps that product in float32 and there is nothing to find. Model: the bytes of the source's float32 weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bertc.graph import model as graph
from bertc.graph import provenance as origin

from .tools import run as process
from .tools import table

LAYER, TIMES = "encoder.layer.7.output.dense", 3e5
WANTED = {"seconds": 120, "ratio": 2.0}
# A child's ru_maxrss counts what its parent had when it was started; VmHWM is the process's own.
OWN_PEAK = """
import re, sys
from bertc import cli
code = cli.run(sys.argv[1:])
print(code, re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
BLIND = """
import sys
from bertc import cli, pipeline
pipeline.value_evidence = lambda job: None
sys.exit(cli.run(sys.argv[1:]))
"""


def run() -> str:
    before, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        sound, broken = folder / "sound.onnx", folder / "broken.onnx"
        process((sys.executable, "-m", "benchmarks.models", "BERT-base", str(sound)))
        size = damage(sound, broken)
        for path in (sound, broken):
            target = ("--target", "tensorrt-rtx:sm89=fp16", "--no-verify")
            process((sys.executable, "-c", BLIND, "build", str(path), *target, "-o", str(path.with_suffix(""))))
        for name, mode in (("sound", "--layers"), ("broken", "--layers"), ("sound", "--bisect"), ("broken", "--bisect")):
            rows.append(measured(folder / name, mode, size))
    head = ["artifact", "question", "answer", "s", "wanted s", "peak MiB", "peak / model", "wanted"]
    load = f"Load of the machine's {os.cpu_count()} cores: {before:.1f} before, {os.getloadavg()[0]:.1f} after."
    return f"{(__doc__ or '').partition(chr(10) * 2)[2].strip()}\n\n{table(head, rows)}\n\nModel: {size:.0f} MiB. {load}"


def damage(source: Path, out: Path) -> float:
    """Write the broken model; returns the MiB of the sound one's weights."""
    made = graph.load_graph(source)
    alike = [n for n in made.model.graph if n.op_type == "MatMul" and origin.module_path(n).endswith(LAYER)]
    (node,) = alike
    weight: Any = node.inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(TIMES), name=weight.name)
    graph.save_graph(made, out)
    return made.initializer_bytes / 2**20


def measured(path: Path, mode: str, size: float) -> list[str]:
    start = time.perf_counter()
    words = (sys.executable, "-c", OWN_PEAK, "verify", str(path), mode, "--json")
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    seconds = time.perf_counter() - start
    document, last = output.rstrip().rsplit("\n", 1)
    code, peak = last.split()
    (found,) = json.loads(document)["artifacts"]
    mib = int(peak) / 1024
    numbers = [f"{seconds:.0f}", f"< {WANTED['seconds']}", f"{mib:.0f}", f"{mib / size:.2f}", f"<= {WANTED['ratio']:g}"]
    return [path.name, f"`{mode}`", f"{said(found)} (exit {code})", *numbers]


def said(found: dict[str, Any]) -> str:
    if "layers" in found:
        compared, first = len(found["layers"]), found["first_nonfinite"].partition(", on ")[0]
        total = compared + len(found["unmatched"])
        return f"{compared} of {total} boundaries" + (f"; not finite first: {first}" if first else ", all finite")
    named = ", ".join(f"{node['op']} in {node['module']}" for node in found["nodes"])
    return f"{found['verdict']}: {named}; {found['runs']} runs" if named else found["verdict"]
