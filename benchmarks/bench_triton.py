"""Kernels of our own, compiled

`bertc kernels` as a table, a kernel and an SM a row: registers a thread, bytes of shared memory and spilled, tensor core
instructions, bytes moved at a usual size against the fewest that any kernel could. Compiled without a GPU, and not run; their
times: `python -m benchmarks gpu`.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

from bertc.report import kernels as report

from .tools import table

HEAD = ["kernel", "SM", "registers", "shared", "spilled", "tensor cores", "instructions", "MB moved", "fewest MB", "runs on"]


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = report.compile_all((), (), Path(folder))
    rows = [row(each) for each in found if "refused" not in each]
    refused = "\n".join(f"- {why}" for why in report.refusals(found))
    spilled = sum(bool(each.get("spilled")) for each in found)
    text = f"Triton {version('triton')}: {len(rows)} compilations, {spilled} of them spill.\n\n{table(HEAD, rows)}"
    return f"{text}\n\nNot there:\n\n{refused}" if refused else text


def row(found: dict[str, object]) -> list[str]:
    counts = found["instructions"]
    assert isinstance(counts, dict)
    cores = ", ".join(f"{counts[kind]} {kind}" for kind in report.TENSOR_CORES if counts[kind]) or "none"
    numbers = [str(found[name]) for name in ("registers", "shared", "spilled")]
    moved = [f"{float(str(found[name])) / 1e6:.1f}" for name in ("bytes_moved", "bytes_least")]
    name = f"{found['kernel']} {found['example']}".strip()
    return [name, str(found["sm"]), *numbers, cores, str(counts["all"]), *moved, str(found["runs_on"])]
