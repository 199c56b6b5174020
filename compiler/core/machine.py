"""Which packages this machine has, read from their metadata: nothing heavy is imported to answer."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata

from .errors import Missing


def version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def onnxruntime_version() -> str | None:
    """The version of onnxruntime or onnxruntime-gpu, or None."""
    return version("onnxruntime") or version("onnxruntime-gpu")


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
