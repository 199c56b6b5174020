"""Which packages this machine has, read from their metadata: nothing heavy is imported to answer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import Missing


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def onnxruntime_version() -> str | None:
    """The version of onnxruntime or onnxruntime-gpu, or None."""
    return installed_version("onnxruntime") or installed_version("onnxruntime-gpu")


def gpus() -> tuple[tuple[str, str], ...]:
    """(name, SM) of each NVIDIA GPU that the driver reports, as ("NVIDIA L4", "sm89"); empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise Missing("nvidia-smi did not answer within 30 s: the NVIDIA driver of this machine hangs; restart it") from error
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if answer.returncode == 0 and "," in line]
    return tuple((name.strip(), "sm" + cap.strip().replace(".", "")) for name, cap in rows)


MOST_THREADS = 1024
TOOLS = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt_rtx",
    "tensorrt",
    "polygraphy",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the tools that can change a result; those that are not installed are left out."""
    found = {name: installed_version(name) for name in TOOLS}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v}


def wanted_threads() -> int:
    """OMP_NUM_THREADS as OpenMP reads it (`4`, or `4,2` for nested regions); 0 where it says nothing. Every session of a command
    keeps to it, as PyTorch and numpy do by themselves, unless the command was told a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(first), MOST_THREADS) if first.isdecimal() else 0


def allowed_cores() -> list[int]:
    """The cores that this process may use; all of them where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def environment() -> dict[str, Any]:
    """The machine: operating system, processor, cores, memory in GiB, NVIDIA GPUs."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "gpus": [f"{name} ({sm})" for name, sm in gpus()],
    }


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Physical memory in GiB, None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def available_bytes() -> int | None:
    """Memory that a program can take without swapping; all of it where the system does not tell, None where it tells neither."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text("utf-8", "replace").splitlines() if meminfo.is_file() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    if found:
        return int(found[0][1]) * 1024
    total = memory_gib()
    return None if total is None else int(total * 2**30)
