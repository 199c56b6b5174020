"""The same application on Ray Serve: each replica is a whole server with its planner and workers; Ray routes between replicas,
adds and removes them, and replaces those that die. Ray's own batching is not used: it would batch what the planner batches.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..artifact import open_artifact
from ..core import BertcError, InputError, Missing, Progress, check_reachable, gpu_models
from . import logs
from .config import ServingConfig
from .http import application
from .server import Server

NAME = "bertc"  # of the application on the cluster
INSTALL = "pip install 'bertc[ray-serve]'"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # of Ray Serve, in the namespace `serve`
LOOK_EVERY = 2.0  # seconds
TRIES = 3  # of a replica that does not start
SLACK = 5.0  # seconds beyond the deadline in which a replica that stops still answers
_HERE: dict[str, Server] = {}  # the server of this process, for its application


class Replica:
    """A server in a process of Ray's."""

    async def __init__(self, packed: bytes) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Start the server of a configuration in MessagePack."""
        logs.to_stderr()
        self.log = logs.Logged()
        self.server = Server(msgspec.msgpack.decode(packed, type=ServingConfig), self.log)
        self.server.metrics.replica = self.server.replica = _replica()
        await self.server.start()
        _HERE["server"] = self.server

    async def check_health(self) -> None:
        """Ray asks this again and again, and replaces a replica that fails three times."""
        if not self.server.pool.alive:
            raise RuntimeError("no worker of this replica lives")

    def notes(self) -> Sequence[str]:
        """What the start had to say."""
        return self.log.notes

    async def __del__(self) -> None:
        """Ray has waited for what was asked; what is left is answered."""
        if hasattr(self, "server"):
            await self.server.close()


def _replica() -> str:
    return str(importlib.import_module("ray.serve").get_replica_context().replica_id.unique_id)


def _application() -> Any:
    """In the replica, after its start: an application cannot travel."""
    return application(_HERE["server"])


def run(
    config: ServingConfig, address: str, log: Progress, started: Callable[[str], None], stop: threading.Event,
    failed: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve on the cluster at ADDRESS until `stop`; then answer what is there and leave.

    `started` gets the URL, `failed` what becomes of the replicas meanwhile. Raises Missing without Ray or a cluster, BertcError
    where replicas do not start.
    """
    config = _settled(config)
    for each in config.models.values():
        open_artifact(Path(each.artifact))  # here, where an error has its words; each replica checks again before it loads
    ray, serve = _connect(address)
    try:
        _room(ray, config, log)
        url = _start(ray, serve, config, log)
        started(url)
        _watch(serve, stop, failed)
    finally:
        _leave(ray, serve)


def _settled(config: ServingConfig) -> ServingConfig:
    """What a replica gets: full paths, and the cores that it asks Ray for instead of all of its machine."""
    if not config.models:
        raise InputError("no artifact to serve")
    models = {
        name: msgspec.structs.replace(each, artifact=os.path.abspath(each.artifact)) for name, each in config.models.items()
    }
    return msgspec.structs.replace(config, models=models, workers=config.workers or 1, threads=config.threads or 1)


def _connect(address: str) -> tuple[Any, Any]:
    try:
        ray = importlib.import_module("ray")
        serve = importlib.import_module("ray.serve")
    except ImportError as error:
        raise Missing(f"--ray needs Ray Serve ({str(error).splitlines()[0]}): {INSTALL}") from error
    check_reachable(address, "--ray", "a cluster begins with: ray start --head")
    try:
        ray.init(address, namespace="serve", log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise Missing(f"--ray {address}: no cluster answers there ({str(error).splitlines()[0]}); ray start --head") from error
    return ray, serve


def _needs(config: ServingConfig) -> dict[str, float]:
    """What one replica takes of a node, by Ray's names."""
    cpus = config.ray.cpus or float(config.workers * config.threads)
    return {"CPU": cpus} | ({"GPU": config.ray.gpus} if config.ray.gpus else {})


def accelerator(config: ServingConfig) -> str | None:
    """Ray's name of the GPU model that replicas need. InputError for one that Ray does not know."""
    if not config.ray.accelerator:
        return None
    found = gpu_models.get(config.ray.accelerator)
    if found.ray is None:
        named = ", ".join(gpu.name for gpu in gpu_models.TABLE if gpu.ray)
        raise InputError(f"ray.accelerator {found.name}: Ray has no name for it; it has {named}")
    return found.ray


def _room(ray: Any, config: ServingConfig, log: Progress) -> None:
    """Say where replicas would wait without a word: no node has what one takes."""
    wanted = _needs(config)
    if kind := accelerator(config):
        wanted[f"accelerator_type:{kind}"] = 0.001
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        asked = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
        log.note(f"no node of this cluster has what a replica takes ({asked}): it waits until one comes")


def deployment_options(config: ServingConfig) -> Mapping[str, Any]:
    """The options of Ray's deployment that a configuration means."""
    needs, patience = _needs(config), config.limits.deadline_ms / 1e3 + SLACK
    actor: dict[str, Any] = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
    if kind := accelerator(config):
        actor["accelerator_type"] = kind
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    actor["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    made: dict[str, Any] = {
        "name": "Server",
        "ray_actor_options": actor,
        "max_ongoing_requests": config.limits.queue,  # the planner needs them all; Ray's own limit is 5
        "graceful_shutdown_timeout_s": patience,
        "graceful_shutdown_wait_loop_s": 0.1,
        "max_constructor_retry_count": TRIES,
    }
    least, most = config.ray.replicas, max(config.ray.max_replicas, config.ray.replicas)
    if most == least:
        return made | {"num_replicas": least}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": config.ray.target_requests}
    return made | {"autoscaling_config": scaling}


def _start(ray: Any, serve: Any, config: ServingConfig, log: Progress) -> str:
    """Start the replicas and wait until they answer; the URL."""
    port = config.port or _free_port(config.host)
    if _runs(ray):
        log.note("Ray Serve runs on this cluster already: its address and port hold, --host and --port do not")
    else:
        serve.start(http_options={"host": config.host, "port": port})
    deployment = serve.deployment(serve.ingress(_application)(Replica)).options(**deployment_options(config))
    packed = msgspec.msgpack.encode(config)
    try:
        with log.stage(f"start {config.ray.replicas} replicas of {config.workers} workers"):
            handle = serve.run(deployment.bind(packed), name=NAME, route_prefix=config.ray.route)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise BertcError(f"the replicas do not start: {_why(serve) or str(error).splitlines()[0]}") from error
    for note in handle.notes.remote().result(timeout_s=30):
        log.note(note)
    return f"http://{config.host}:{port}{config.ray.route.rstrip('/')}"


def _runs(ray: Any) -> bool:
    try:
        ray.get_actor(CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0)) as taken:
            return int(taken.getsockname()[1])
    except OSError as error:
        raise InputError(f"cannot listen at {host}: {error.strerror or error}; choose another --host") from error


def _why(serve: Any) -> str:
    """The last line of the error that ended a replica, as Ray keeps it."""
    found = serve.status().applications.get(NAME)
    texts = [each.message for each in found.deployments.values()] if found is not None else []
    lines = [line.strip() for text in texts for line in text.splitlines() if "Error" in line or "Missing" in line]
    return lines[-1] if lines else ""


def _watch(serve: Any, stop: threading.Event, failed: Callable[[str], None]) -> None:
    """Until `stop`: say what becomes of the replicas."""
    before = ""
    while not stop.wait(LOOK_EVERY):
        found = serve.status().applications.get(NAME)
        if found is None:
            raise BertcError(f"the application {NAME} was deleted from the cluster by somebody else")
        states = {state: n for each in found.deployments.values() for state, n in each.replica_states.items() if n}
        now = f"{found.status}: " + ", ".join(f"{n} {state.lower()}" for state, n in sorted(states.items()))
        if before and now != before:
            failed(f"replicas are {now}")
        before = now


def _leave(ray: Any, serve: Any) -> None:
    """Answer what is there; end Ray Serve where nothing else is on it."""
    try:
        if _runs(ray):
            serve.delete(NAME)
            if not serve.status().applications:
                serve.shutdown()
    finally:
        ray.shutdown()
