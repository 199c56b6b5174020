"""Weights of 7 bits for CPUs whose 8-bit products saturate.

Without VNNI, x86 multiplies unsigned by signed bytes with `vpmaddubsw`, which adds two products in 16 bits: 255 * 127 * 2 does
not fit, 255 * 64 * 2 does (ONNX Runtime, "Quantize ONNX models", on reduce_range).
"""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FULL, REDUCED = 8, 7


def weight_bits(target: str, cpuinfo: Path = CPUINFO) -> int:
    """7 for ONNX Runtime on an x86 CPU without VNNI, else 8. A machine that does not say what its CPU has counts as without."""
    if target != "onnxruntime" or platform.machine().lower() not in ("x86_64", "amd64"):
        return FULL
    if not cpuinfo.is_file():
        return REDUCED
    flags = cpuinfo.read_text("utf-8", "replace").split()
    return FULL if any("vnni" in flag for flag in flags) else REDUCED
