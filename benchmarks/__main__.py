"""Run every benchmark and write benchmarks/README.md: `make bench`, or `python -m benchmarks NAME...` for some of them."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from bertc.core.machine import versions

HERE = Path(__file__).parent
HEAD = """# Benchmarks

Measured by `make bench`; each section names its own command. Nothing here is estimated: what this machine cannot run is said
to be missing. Times vary by some per cent from run to run; compared runs are interleaved and medians are shown.

Machine: {machine}. {tools}.
"""
# `make coverage` exports some three hundred files first, `make real`, `make placement` and `make kernels` install packages first,
# `gpu` needs a GPU, servers and trainings need the machine for themselves for many minutes.
APART = {
    "bench_coverage", "bench_compress", "bench_distill", "bench_gpu", "bench_hardening", "bench_lowbit", "bench_many_models",
    "bench_placement", "bench_real", "bench_search", "bench_serving", "bench_serving_peers", "bench_soak", "bench_systems",
    "bench_triton",
}  # fmt: skip
MISSING = """
## Missing

No NVIDIA GPU was at hand: no engine was executed. Latency of TensorRT-RTX and TensorRT engines, the engines' own accuracy, and
every figure of ONNX Runtime on CUDA are missing.
"""


def main() -> None:
    """Run the named benchmarks (without names all but those apart) and rewrite their sections."""
    named = ["bench_" + name.replace("-", "_").removeprefix("bench_") for name in sys.argv[1:]]
    names = named or [m.name for m in pkgutil.iter_modules([str(HERE)]) if m.name.startswith("bench_") and m.name not in APART]
    sections = {}
    for name in sorted(names):
        print(f"== {name}", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        title = (module.__doc__ or name).strip().splitlines()[0]
        kept, missing = HERE / "results" / f"{name}.md", getattr(module, "lacking", str)()
        if missing and (kept.is_file() or find_spec("triton") is None):
            module.run()  # says what is missing, and leaves what is there
        text = module.empty() if missing else module.run()
        sections[name] = f"\n## {title}\n\n`python -m benchmarks {name.removeprefix('bench_')}`\n\n{text.strip()}\n"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(sections[name], encoding="utf-8")
        print(sections[name], flush=True)
    write_readme()


def write_readme() -> None:
    """Assemble README.md from the sections of all benchmarks that have been run."""
    parts = [p.read_text("utf-8") for p in sorted((HERE / "results").glob("bench_*.md"))]
    tools = ", ".join(f"{k} {v}" for k, v in versions().items())
    head = HEAD.format(machine=_machine(), tools=tools)
    (HERE / "README.md").write_text(head + "".join(parts) + MISSING, encoding="utf-8")


def _machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, {platform.system()}, no GPU"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
