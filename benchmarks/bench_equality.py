"""Closeness to PyTorch

The fp32 graph and the ONNX Runtime artifact at shapes and masks the exporter never saw; fp16 and bf16 graphs under emulated
rounding on 2,000 real texts. `equal` bytes compare two builds in separate processes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import bertc
from bertc.core.files import hash_file

from .real_text import sentences
from .tools import BERTC, MODEL, table
from .tools import run as process

TEXTS = 2000
TARGETS = ("onnxruntime=fp32", "tensorrt-rtx:sm89=fp32", "tensorrt-rtx:sm89=fp16", "tensorrt-rtx:sm89=bf16")


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, name) for name in ("first", "second")]
        for out in outs:
            targets = [word for target in TARGETS for word in ("--target", target)]
            process((*BERTC, "build", str(MODEL), *targets, "-o", str(out)))
        texts = Path(folder, "texts.txt")
        texts.write_text("\n".join(sentences(TEXTS)) + "\n", encoding="utf-8")
        goldens = {Path(v.path).name: v for v in bertc.verify(outs[0])}
        real = {Path(v.path).name: v for v in bertc.verify(outs[0], data=texts, against=str(MODEL))}
        rows = [_row(name, goldens[name], real[name]) for name in sorted(real)]
        kernels = [_kernels(out) for out in sorted(outs[0].iterdir()) if "rtx" in out.name]
        same = [_same(outs, name) for name in sorted(real)]
    head = [
        "artifact",
        "rel. error, unseen shapes",
        "rel. error, texts",
        "min cosine, texts",
        "mean cosine",
        "nearest neighbour kept",
        "ran",
    ]
    wanted = "Wanted: relative error <= 1e-5 for fp32, minimum cosine >= 0.99999 for fp16.\n\n"
    counts = table(["engine", "kernels", "by layer", "rest", "half GEMMs", "plan MiB", "graph MiB"], kernels)
    return wanted + table(head, rows) + "\n\n" + counts + "\n\n" + table(["built twice", "graph.onnx", "engine"], same)


def _row(name, golden, real) -> list[str]:  # type: ignore[no-untyped-def]
    (a,), (b,) = golden.result.outputs, real.result.outputs
    (decision,) = real.result.decisions
    ran = "engine" if real.engine_executed else "graph, emulated"
    kept = f"{decision.agreed} of {decision.total}"
    return [name, f"{a.relative:.1e}", f"{b.relative:.1e}", f"{b.cosine_min:.8f}", f"{b.cosine_mean:.8f}", kept, ran]


def _kernels(path: Path) -> list[str]:
    from bertc.artifact.manifest import open_artifact

    engine = open_artifact(path).manifest["engine"]
    listed, gemms = engine["kernels"], engine["gemms"]
    half = f"{gemms['half']} of {gemms['total']}"
    sizes = [f"{(path / f).stat().st_size / 2**20:.1f}" for f in ("engine.plan", "graph.onnx")]
    return [path.name, str(listed["count"]), ", ".join(map(str, listed["layers"])), str(listed["rest"]), half, *sizes]


def _same(outs: list[Path], name: str) -> list[str]:
    def equal(file: str) -> str:
        return "equal" if len({hash_file(out / name / file) for out in outs}) == 1 else "DIFFERENT"

    engine = "engine.plan" if "rtx" in name else "model.onnx"
    return [name, equal("graph.onnx"), f"{engine} {equal(engine)}"]
