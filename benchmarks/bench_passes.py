"""Time and memory of the fusion passes

Clean-up, rules, the proof of every match with the forms that TensorRT gets, and the check of the whole graph, on an ONNX file
with random weights and random biases; each stage of one process, with its own peak. Then `bertc fuse` on a file of more than
2 GB; then `bertc fuse` on graphs of up to 20,000 nodes and next to no weights.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import long_graphs, pass_times
from .models import MODELS
from .tools import BERTC, table
from .tools import run as process

WANTED = {"BERT-base": 20, "BERT-large": 60}  # seconds for all of it, on two cores
LONG = (
    *(("chain", count, False) for count in (1_000, 5_000, 20_000)), ("chain", 5_000, True), ("wide", 20_000, False),
    ("encoder", 200 * len(long_graphs.LAYER), False), ("encoder", 200 * len(long_graphs.LAYER), True),
)  # fmt: skip
LONG_ABOUT = """What a node costs in graphs of any number of them, on one thread, with reading, writing and running the file: a
`chain` of Tanh, Add and Mul, in which nothing fuses; a `wide` graph, one value that a third of the nodes read; an `encoder` of
200 layers of width 8. "To the least": what a node takes, to what it takes in the graph of that kind where it takes least; 1 is
linear."""
STAGES = ("read", "clean up", "rules and proofs", "whole-graph check")


def run() -> str:
    rows, large = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, wanted in WANTED.items():
            path = Path(folder, f"{name}.onnx")
            process((sys.executable, "-m", "benchmarks.models", name, str(path)))
            found = json.loads(
                subprocess.run([sys.executable, "-m", __name__, str(path)], check=True, capture_output=True).stdout
            )
            rows += _rows(name, found, wanted)
            path.unlink()
        path = Path(folder, "large.onnx")
        process((sys.executable, "-m", "benchmarks.models", "3 GB", str(path)))
        weights = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
        done = process((*BERTC, "fuse", str(path), "-o", str(Path(folder, "fused.onnx"))))
        large = [f"{weights:.0f}", f"{done.seconds:.1f}", f"{done.peak_mib:.0f}", f"{done.peak_mib / weights:.2f}", "< 2"]
    about = (__doc__ or "").partition("\n\n")[2].strip()
    stages = table(["model", "weights MiB", "stage", "s", "CPU s", "wanted s", "peak MiB", "matches proven"], rows)
    settings = ", ".join(f"{key} {value}" for key, value in MODELS["3 GB"][1].items())
    fused = table(["weights MiB", "s", "peak MiB, mapped files counted", "peak / weights", "wanted"], [large])
    return (
        f"{about}\n\n{stages}\n\n`bertc fuse` of a BERT with {settings}:\n\n{fused}\n\n{LONG_ABOUT}\n\n{pass_times.rows(_long())}"
    )


def _long() -> list[dict[str, Any]]:
    """Each graph in a process of its own, on one thread: CPU seconds, which other work on the machine moves little."""
    command, one = [sys.executable, "-m", "benchmarks.pass_times"], {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for shape, count, prove in LONG:
        given = [*command, shape, str(count), *(["prove"] if prove else [])]
        done = subprocess.run(given, check=True, capture_output=True, text=True, env=one)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def _rows(name: str, found: dict[str, Any], wanted: int) -> list[list[str]]:
    def row(stage: str, seconds: float, cpu: float, peak: float, *rest: str) -> list[str]:
        limit, matches = rest or ("", "")
        return [name, f"{found['weights']:.0f}", stage, f"{seconds:.1f}", f"{cpu:.1f}", limit, f"{peak:.0f}", matches]

    measured = found["stages"]
    passes = [measured[stage] for stage in STAGES[1:]]
    total = [sum(stage[0] for stage in passes), sum(stage[1] for stage in passes), max(stage[2] for stage in passes)]
    rows = [row(stage, *measured[stage]) for stage in STAGES]
    return [*rows, row("all passes", *total, f"< {wanted}", str(found["matches"]))]


def measure(path: Path) -> dict[str, Any]:
    """Stages of one model: wall seconds, CPU seconds, peak MiB."""
    from bertc import targets
    from bertc.data import synthetic as data
    from bertc.fusions import engine as fuse
    from bertc.graph import normalization as cleanup
    from bertc.runtime.reference import ReferenceRunner
    from bertc.source import onnx_file as onnx_source
    from bertc.source.types import Source
    from bertc.verification import comparison as metrics
    from bertc.verification import export_check

    stages: dict[str, list[float]] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        stages[stage] = [time.perf_counter() - wall, time.process_time() - cpu, _peak()]
        return result

    graph, dims, _ = timed(STAGES[0], lambda: onnx_source.read_onnx_file(path))
    samples = data.synthetic_samples(graph, dims)
    truth = ReferenceRunner(graph)
    proof = export_check.ExportCheck(samples, tuple(truth.run(s.feeds) for s in samples), metrics.Comparison())
    del truth
    spec = targets.parse_spec("tensorrt-rtx:sm89")
    tables = {str(spec): targets.lowerings(spec)}
    timed(STAGES[1], lambda: cleanup.normalize(graph))
    fused = timed(STAGES[2], lambda: fuse.fuse(graph, dims, lowerings=tables, samples=samples))
    stages[STAGES[2]] = [max(0.0, a - b) for a, b in zip(stages[STAGES[2]][:2], stages[STAGES[1]][:2], strict=True)] + stages[
        STAGES[2]
    ][2:]
    source = Source(str(path), "onnx", "", "features", graph, dims, None)
    timed(STAGES[3], lambda: export_check.check_fused(fused, source, proof))
    return {"weights": graph.initializer_bytes / 2**20, "matches": len(fused.change.applied), "stages": stages}


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
