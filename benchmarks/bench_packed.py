"""A batch without its padding, ONNX Runtime on the CPU

The time of the padded batch divided by the time of the packed one (`bertc build --packed`), for batches of texts with log-normal
lengths (sigma 0.75), padded to 128 tokens: `fill` is the share of positions with a token. `source` is ONNX Runtime on the
source's own graph, `bertc` the fused graph with padding. Interleaved, 12 pairs a point; geometric mean and 95 % interval
(Student's t over the logarithms). Above 1 the packed graph is faster. `off` is the largest difference of a sentence vector.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bertc.data import log_normal_lengths
from bertc.fusions import engine as fuse
from bertc.graph import save_graph
from bertc.packing import pack
from bertc.source import open_source
from bertc.targets import onnxruntime as target

from . import bench_ort
from .tools import MODEL, table

LONGEST, PAIRS = 128, 12
POINTS = ((32, 0.24), (32, 0.6), (32, 1.0), (8, 0.24), (8, 0.6), (1, 1.0))  # rows, fill
WANTED = "wanted: at least 2.5 over `source` at 32 rows and fill 0.24, and at least 0.98 over `bertc` at fill 1"


def run() -> str:
    source = open_source(str(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("source", "bertc", "packed")}
        fused = fuse.fuse(source.graph, source.dims, lowerings={"onnxruntime": target.lowerings()}).graph
        save_graph(source.graph, files["source"])
        save_graph(target.lower(fused), files["bertc"])
        save_graph(target.lower(pack(fused).graph), files["packed"])
        parts = [measure(files, threads) for threads in (1, 2)]
    return f"all-MiniLM-L6-v2 with pooling and normalisation, float32; {WANTED}.\n\n" + "\n\n".join(parts)


def measure(files: dict[str, Path], threads: int) -> str:
    sessions = {name: bench_ort.session(path, threads) for name, path in files.items()}
    rows = []
    for count, fill in POINTS:
        given = feeds(count, fill)
        calls = {name: {i.name: given[i.name] for i in each.get_inputs()} for name, each in sessions.items()}
        answers = {name: each.run(None, calls[name])[0] for name, each in sessions.items()}
        off = float(np.abs(answers["packed"] - answers["source"]).max())
        ratios, base = {}, 0.0
        for name in ("bertc", "source"):
            ratios[name], base = bench_ort.compared(sessions[name], sessions["packed"], calls[name], calls["packed"], PAIRS, 1)
        real = f"{given['attention_mask'].mean():.2f}"
        rows.append(
            [str(count), real, f"{base * 1e3:.0f}", *map(bench_ort.interval, (ratios["source"], ratios["bertc"])), f"{off:.1e}"]
        )
    head = ["rows", "fill", "source, ms", "over source", "over bertc", "off"]
    return f"{threads} thread{'s' * (threads > 1)}:\n\n" + table(head, rows)


def feeds(count: int, fill: float) -> dict[str, np.ndarray]:
    """A batch of so many rows, their lengths log-normal."""
    lengths = log_normal_lengths(count, LONGEST, fill)
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(count).integers(1000, 20000, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
