"""Tasks on a Ray cluster: the same jobs, in processes of machines that have the cores, the memory and the GPU model.

Results go through the store, which every node must see under the same path, as it must the sources; the driver gets a few lines a
task. A worker that dies is replaced by Ray and its task begun again: what was half-made is no more than a folder to sweep, and
what was finished is found by its key.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..core import Missing, check_reachable, gpu_models
from .local import run_process
from .plan import Task
from .run import Future

RETRIES = 3


class RayPool:
    """The cluster at ADDRESS (`auto`, `ray://host:10001`, `host:6379`). Raises Missing where there is none, or no Ray."""

    def __init__(self, address: str) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")  # half of it has no types
        except ImportError as error:
            raise Missing(f"--ray needs Ray ({error}); pip install 'bertc[fleet]'") from error
        ray = self._ray
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        check_reachable(address, "--ray", "a cluster begins with: ray start --head")
        try:
            ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Missing(
                f"--ray {address}: no cluster answers there ({str(error).splitlines()[0]}); ray start --head"
            ) from error
        self._work = ray.remote(run_process)  # a task is a process below the Ray worker, and dies with it
        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._refs: dict[Future, Any] = {}
        self.memory = int(max(node.get("memory", 0) for node in self._nodes))

    def gpus(self) -> tuple[str, ...]:
        """The GPU models of the nodes, as far as Ray has a name for them."""
        found = {name.partition(":")[2] for node in self._nodes for name in node if name.startswith("accelerator_type:")}
        return tuple(gpu.name for gpu in gpu_models.TABLE if gpu.ray in found)

    def takes(self, task: Task, memory: int) -> bool:
        """Always: Ray holds back what does not fit yet."""
        return True

    def submit(self, job: Mapping[str, Any], task: Task, memory: int) -> Future:
        """Hand a task to Ray with what it needs."""
        needs: dict[str, Any] = {"num_cpus": task.cores, "memory": memory, "max_retries": RETRIES}
        if task.host is not None:
            needs |= {"num_gpus": 1, "accelerator_type": gpu_models.get(task.host).ray}
        ref = self._work.options(name=task.slot, **needs).remote({**job, "cores": task.cores})
        future: Future = ref.future()
        self._refs[future] = ref
        return future

    def result(self, future: Future) -> dict[str, Any]:
        """A task's result; one whose worker died too often has failed."""
        self._refs.pop(future)
        try:
            return future.result()
        except self._ray.exceptions.RayError as error:
            message = f"Ray gave up after {RETRIES} retries: {str(error).strip().splitlines()[0]}"
            return {"state": "failed", "exit_code": 1, "error": message, "seconds": 0.0}

    def stop(self) -> None:
        """Cancel what runs and leave the cluster."""
        for ref in self._refs.values():
            self._ray.cancel(ref, force=True)
        self._ray.shutdown()
