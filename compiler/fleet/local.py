"""Tasks as processes of this machine, no more at a time than its cores and its memory hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import gpus
from .plan import GB, Task

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")


class LocalPool:
    """Cores by number and memory in bytes. A task says what it needs and starts when both are free.

    Each task is bound to its cores: the libraries then start as many threads, and sums do not depend on the machine's size.
    """

    def __init__(self, cores: int | None = None, memory: int | None = None) -> None:
        self.cpus = _cpus()[: cores or None]
        self.memory = available_memory() if memory is None else memory
        self.free, self.left = list(self.cpus), self.memory
        self._threads = ThreadPoolExecutor(max_workers=len(self.cpus))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._rooms: dict[Future[dict[str, Any]], tuple[list[int], int]] = {}

    def takes(self, task: Task, memory: int) -> bool:
        """Whether there is room now. (A task of more cores than there are gets them all.)"""
        return memory <= self.left and min(task.cores, len(self.cpus)) <= len(self.free)

    def submit(self, job: Mapping[str, Any], task: Task, memory: int) -> Future[dict[str, Any]]:
        """Start a task that `takes` said yes to; `result` takes its room back."""
        mine = [self.free.pop(0) for _ in range(min(task.cores, len(self.cpus)))]
        self.left -= memory
        future = self._threads.submit(self._run, {**job, "cpus": mine})
        self._rooms[future] = (mine, memory)
        return future

    def result(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """The result of a finished task; its room is free again."""
        mine, memory = self._rooms.pop(future)
        self.free = sorted([*self.free, *mine])
        self.left += memory
        return future.result()

    def gpus(self) -> tuple[str, ...]:
        """The GPU models of this machine."""
        return gpus.here()

    def _run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return run_process(job, self._running)

    def stop(self) -> None:
        """Kill what runs and wait until it is gone: the store is whole at every moment."""
        for process in list(self._running):
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)


def run_process(job: Mapping[str, Any], running: set[subprocess.Popen[bytes]] | None = None) -> dict[str, Any]:
    """One task in a process of its own; a crash is a failure with the last words of the process."""
    running = set() if running is None else running
    with tempfile.TemporaryDirectory(prefix="bertc-task-") as folder:
        job_file, result, told = (Path(folder, name) for name in ("job.json", "result.json", "stderr"))
        job_file.write_text(json.dumps({**job, "parent": os.getpid(), "result": str(result)}), encoding="utf-8")
        command = [sys.executable, "-P", "-m", f"{__package__}.task", str(job_file)]
        threads = str(len(job["cpus"])) if job.get("cpus") else str(job.get("cores", 1))
        # A child must find the same packages, however this process was put on the path.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
        with told.open("wb") as stderr:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": stderr, "stderr": stderr}
            process = subprocess.Popen(command, env=environment, cwd=job["cwd"], **pipes)  # type: ignore[call-overload]
            running.add(process)
            try:
                code = process.wait()
            finally:
                running.discard(process)
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if code == 0:
            return dict(json.loads(result.read_text("utf-8")))
        return {"state": "failed", "key": job["key"], "exit_code": 1, "error": _crash(code, told), "seconds": 0.0}


def _crash(code: int, told: Path) -> str:
    lines = [line for line in told.read_text("utf-8", "replace").splitlines() if line.strip()]
    words = f"; its last words: {' | '.join(lines[-3:])}" if lines else ""
    if code == -signal.SIGKILL:
        return f"its process was killed (SIGKILL): by hand, or because memory ran out{words}"
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return f"its process ended with {how}{words}"


def _cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_memory() -> int:
    """Bytes that are free now, within the container's limit where there is one."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines()) if MEMINFO.exists() else {}
    free = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else 4 * GB
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(free, int(limit)) if limit.isdigit() else free
