"""Time and memory of a build

`bertc build` of MiniLM for onnxruntime fp32 plus tensorrt-rtx sm89 fp16, verification included, against a bare
`torch.onnx.export` of the same model that writes one file: whole processes, imports on both sides, interleaved.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from .tools import BERTC, MODEL, interleaved, spread, table
from .tools import run as process

PAIRS = 5
BARE = """
import sys, torch, transformers
model = transformers.AutoModel.from_pretrained(sys.argv[1]).eval()
ids = torch.ones(2, 16, dtype=torch.int64)
length = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
with torch.no_grad():
    torch.onnx.export(model, (ids, ids, ids), sys.argv[2], dynamo=True, dynamic_shapes=(length,) * 3, opset_version=20,
                      external_data=False, verbose=False)
"""
FOOTPRINT = (
    "import torch, transformers, torch.onnx, onnxscript; from transformers import BertModel; torch.ones(2) @ torch.ones(2)"
)


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        bare = (sys.executable, "-c", BARE, str(MODEL), str(Path(folder, "bare.onnx")))
        build = (*BERTC, "build", str(MODEL), "--target", "onnxruntime=fp32", "--target", "tensorrt-rtx:sm89=fp16")
        build = (*build, "--force", "-o", str(Path(folder, "out")))
        process(build), process(bare)  # the first run of each fills the file cache and the bytecode cache
        bares, builds = interleaved(bare, build, PAIRS)
    helps = [process((*BERTC, "--help")) for _ in range(11)]
    footprint = process((sys.executable, "-c", FOOTPRINT)).peak_mib
    weights = (MODEL / "model.safetensors").stat().st_size / 2**20
    ratios = [b.seconds / a.seconds for a, b in zip(bares, builds, strict=True)]
    peak = statistics.median(p.peak_mib for p in builds)
    times = (peak - footprint) / weights
    rows = [
        ["`bertc --help`, s", spread([p.seconds for p in helps]), "< 0.3"],
        ["bare torch.onnx.export, s", spread([p.seconds for p in bares]), ""],
        ["bertc build, both targets, verified, s", spread([p.seconds for p in builds]), ""],
        ["ratio of each pair", spread(ratios), "<= 2.0"],
        ["peak memory of bare torch.onnx.export, MiB", f"{statistics.median(p.peak_mib for p in bares):.0f}", ""],
        ["peak memory of bertc build, MiB", f"{peak:.0f}", ""],
        ["torch, transformers and onnxscript alone, MiB", f"{footprint:.0f}", ""],
        [f"(peak - those) / weights of {weights:.0f} MiB", f"{times:.1f}", "<= 6"],
    ]
    return table(["what", f"median (min to max) of {PAIRS}", "wanted"], rows)
