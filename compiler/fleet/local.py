"""Tasks as processes of this machine, no more at a time than its cores and its memory hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..core import ArtifactError, allowed_cores, gpu_models, read_json
from .plan import GB, Task
from .store import Store

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")


class LocalPool:
    """Cores and bytes of memory. A task says what it needs and starts when both are free.

    The libraries of a task start as many threads as it has cores: sums then do not depend on the machine's size.
    """

    def __init__(self, cores: int | None = None, memory: int | None = None) -> None:
        self.cores = cores or len(allowed_cores())
        self.memory = available_memory() if memory is None else memory
        self.free, self.left = self.cores, self.memory
        self._threads = ThreadPoolExecutor(max_workers=self.cores)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._rooms: dict[Future[dict[str, Any]], tuple[int, int]] = {}

    def takes(self, task: Task, memory: int) -> bool:
        """Whether there is room now. (A task of more cores than there are gets them all.)"""
        return memory <= self.left and min(task.cores, self.cores) <= self.free

    def submit(self, job: Mapping[str, Any], task: Task, memory: int) -> Future[dict[str, Any]]:
        """Start a task that `takes` said yes to; `result` takes its room back."""
        room = (min(task.cores, self.cores), memory)
        self.free, self.left = self.free - room[0], self.left - memory
        future = self._threads.submit(run_process, {**job, "cores": room[0]}, self._running)
        self._rooms[future] = room
        return future

    def result(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """The result of a finished task; its room is free again."""
        cores, memory = self._rooms.pop(future)
        self.free, self.left = self.free + cores, self.left + memory
        return future.result()

    def gpus(self) -> tuple[str, ...]:
        """The GPU models of this machine."""
        return gpu_models.local_gpus()

    def stop(self) -> None:
        """Kill what runs and wait until it is gone: the store is whole at every moment."""
        for process in list(self._running):
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)


def run_process(job: Mapping[str, Any], running: set[subprocess.Popen[bytes]] | None = None) -> dict[str, Any]:
    """One task in a process of its own; a crash is a failure with the last words of the process."""
    running = set() if running is None else running
    # In the store, where what a killed process leaves is swept; that goes for the temporary files of its libraries, too.
    with Store(Path(job["cwd"], job["store"])).staging() as folder:
        job_file, result, stderr_file = (folder / name for name in ("job.json", "result.json", "stderr"))
        whole = {**job, "parent": os.getpid(), "result": str(result), "began": time.time()}
        job_file.write_text(json.dumps(whole), encoding="utf-8")
        command = [sys.executable, "-P", "-m", f"{__package__}.task", str(job_file)]
        # A child must find the same packages, however this process was put on the path.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(job["cores"]), "TQDM_DISABLE": "1"}
        environment |= {"TMPDIR": str(folder)}
        with stderr_file.open("wb") as stderr:
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
            return dict(read_json(result, dict[str, Any], error=ArtifactError))
        return {"state": "failed", "key": job["key"], "exit_code": 1, "error": _crash(code, stderr_file), "seconds": 0.0}


def _crash(code: int, stderr_file: Path) -> str:
    lines = [line for line in stderr_file.read_text("utf-8", "replace").splitlines() if line.strip()]
    last_lines = f"; last lines: {' | '.join(lines[-3:])}" if lines else ""
    if code == -signal.SIGKILL:
        return f"its process was killed (SIGKILL): out of memory, or by hand{last_lines}"
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return f"its process ended with {how}{last_lines}"


def available_memory() -> int:
    """Bytes that are free now, within the container's limit where there is one."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines()) if MEMINFO.exists() else {}
    free = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else 4 * GB
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(free, int(limit)) if limit.isdigit() else free
