"""ONNX Runtime on the CPU, unfused and fused

The time of the source's own graph divided by the time of the fused graph that bertc writes and by that of onnxscript's
ort_fusions; ONNX Runtime's load-time optimiser is on in all. 30 interleaved pairs a point, each side the best of three runs or
of 50 ms; geometric mean and 95 % interval (Student's t over the logarithms). Above 1 the fused graph is faster. The column
`itself` is the same file opened twice: what the machine's noise looks like. Half the rows are padded to half the length.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from bertc.fusions import engine as fuse
from bertc.graph.model import save_graph
from bertc.source.opening import open_source
from bertc.source.types import Source
from bertc.targets import onnxruntime as target

from .tools import MODEL, table

PAIRS, RUNS, SECONDS = 30, 3, 0.05
POINTS = ((1, 16), (1, 128), (8, 16), (8, 128))
WANTED = 0.97


def run() -> str:
    source = open_source(str(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        files = forms(source, Path(folder))
        parts = [measure(files, threads) for threads in (1, 2)]
    return f"all-MiniLM-L6-v2 with pooling and normalisation, float32; wanted: every lower bound >= {WANTED}.\n\n" + "\n\n".join(
        parts
    )


def forms(source: Source, folder: Path) -> Mapping[str, Path]:
    """Name -> the file of that form; `source` and `itself` are the same one."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    fused = fuse.fuse(source.graph, source.dims, lowerings={"onnxruntime": target.lowerings()})
    save_graph(source.graph, folder / "source.onnx")
    save_graph(target.lower(fused.graph), folder / "bertc.onnx")
    optimised = optimize_for_ort(ir.load(folder / "source.onnx"))
    ir.save(optimised[0] if isinstance(optimised, tuple) else optimised, folder / "ort_fusions.onnx")
    return {name: folder / f"{name}.onnx" for name in ("source", "bertc", "ort_fusions")} | {"itself": folder / "source.onnx"}


def measure(files: Mapping[str, Path], threads: int) -> str:
    sessions = {name: session(path, threads) for name, path in files.items()}
    rows = []
    for batch, length in POINTS:
        given = feeds(batch, length)
        calls = {name: {i.name: given[i.name] for i in each.get_inputs()} for name, each in sessions.items()}
        ratios, base = {}, math.nan
        for name in ("bertc", "ort_fusions", "itself"):
            ratios[name], base = compared(sessions["source"], sessions[name], calls["source"], calls[name])
        rows.append([str(batch), str(length), f"{base * 1e3:.1f}", *(interval(r) for r in ratios.values())])
    head = ["batch", "length", "unfused, ms", "bertc", "ort_fusions", "itself"]
    return f"{threads} thread{'s' * (threads > 1)}:\n\n" + table(head, rows)


def session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch * length)
    mask = np.ones((batch, length), np.int64)
    mask[batch // 2 :, length // 2 :] = 0
    ids = rng.integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def compared(
    first: Any, second: Any, given: Mapping[str, Any], same: Mapping[str, Any], pairs: int = PAIRS, runs: int = RUNS
) -> tuple[list[float], float]:
    """(time of the first / time of the second for each pair, the first's median time in seconds)."""
    sides = ((first, given), (second, same))
    ratios, times = [], []
    for index in range(pairs + 2):  # two to warm up
        found = [0.0, 0.0]
        for side in (0, 1) if index % 2 else (1, 0):
            found[side] = best(*sides[side], runs)
        ratios.append(found[0] / found[1])
        times.append(found[0])
    return ratios[2:], statistics.median(times[2:])


def best(session: Any, given: Mapping[str, Any], runs: int) -> float:
    """The shortest of some runs, in seconds: what disturbs a run only makes it longer."""
    times: list[float] = []
    while len(times) < runs or sum(times) < SECONDS:
        start = time.perf_counter()
        session.run(None, given)
        times.append(time.perf_counter() - start)
    return min(times)


def _t95(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


def interval(ratios: list[float]) -> str:
    """`geometric mean (low to high)`."""
    logs = [math.log(r) for r in ratios]
    middle, half = statistics.mean(logs), _t95(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{math.exp(middle):.3f} ({math.exp(middle - half):.3f} to {math.exp(middle + half):.3f})"
