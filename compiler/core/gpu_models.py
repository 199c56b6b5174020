"""GPU models by the names people use: their SM and their memory.

SMs: https://developer.nvidia.com/cuda-gpus. Memory in GB as sold.
"""

from __future__ import annotations

import dataclasses
import re

from . import machine
from .errors import RecipeError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One model. `pattern` finds it in the name that nvidia-smi gives; `ray` is Ray's accelerator_type, where it has one."""

    name: str
    sm: str
    memory_gb: int
    pattern: str
    ray: str | None = None


TABLE = (
    Gpu("t4", "sm75", 16, r"\bT4\b", "T4"),
    Gpu("rtx-2080-ti", "sm75", 11, r"RTX 2080 Ti"),
    Gpu("rtx-8000", "sm75", 48, r"Quadro RTX 8000"),
    Gpu("a100-80gb", "sm80", 80, r"A100.*80GB", "A100"),
    Gpu("a100", "sm80", 40, r"A100(?!.*80GB)", "A100"),
    Gpu("a30", "sm80", 24, r"\bA30\b"),
    Gpu("a10", "sm86", 24, r"\bA10\b"),
    Gpu("a10g", "sm86", 24, r"\bA10G\b", "A10G"),
    Gpu("a40", "sm86", 48, r"\bA40\b"),
    Gpu("rtx-a6000", "sm86", 48, r"RTX A6000"),
    Gpu("rtx-3080", "sm86", 10, r"RTX 3080(?! Ti)"),
    Gpu("rtx-3090", "sm86", 24, r"RTX 3090(?! Ti)"),
    Gpu("l4", "sm89", 24, r"\bL4\b", "L4"),
    Gpu("l40", "sm89", 48, r"\bL40\b"),
    Gpu("l40s", "sm89", 48, r"\bL40S\b", "L40S"),
    Gpu("rtx-4080", "sm89", 16, r"RTX 4080"),
    Gpu("rtx-4090", "sm89", 24, r"RTX 4090"),
    Gpu("rtx-6000-ada", "sm89", 48, r"RTX 6000 Ada"),
    Gpu("h100", "sm90", 80, r"\bH100\b", "H100"),
    Gpu("h200", "sm90", 141, r"\bH200\b", "H200"),
    Gpu("gh200", "sm90", 96, r"\bGH200\b"),
    Gpu("b200", "sm100", 180, r"\bB200\b", "B200"),
    Gpu("b300", "sm103", 270, r"\bB300\b"),
    Gpu("rtx-5080", "sm120", 16, r"RTX 5080"),
    Gpu("rtx-5090", "sm120", 32, r"RTX 5090"),
    Gpu("rtx-pro-6000", "sm120", 96, r"RTX PRO 6000"),
    Gpu("gb10", "sm121", 128, r"\bGB10\b"),
)


def names() -> tuple[str, ...]:
    return tuple(gpu.name for gpu in TABLE)


def get(name: str) -> Gpu:
    """The GPU model of that name; RecipeError lists the nearest."""
    for gpu in TABLE:
        if gpu.name == name:
            return gpu
    raise RecipeError(f"unknown GPU model {name!r}{did_you_mean(name, names())}")


def local_gpus() -> tuple[str, ...]:
    """The models of the GPUs in this machine; a GPU that the table does not know is given by its full name."""
    return tuple(named(name) for name, _ in machine.gpus())


def of_sm(sm: str) -> tuple[str, ...]:
    """The models of an SM."""
    return tuple(gpu.name for gpu in TABLE if gpu.sm == sm)


def named(name: str) -> str:
    """The model of a GPU by the name that nvidia-smi gives, which is kept where the table does not know it."""
    return next((gpu.name for gpu in TABLE if re.search(gpu.pattern, name)), name)
