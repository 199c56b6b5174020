"""bertc serve ARTIFACT...: answer requests over HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, Missing
from ._command import Command
from ._output import print_result, progress
from ._types import FILE, OneOf, Option

if TYPE_CHECKING:
    from ..serve import ServingConfig

SECTION = "Serve"
EXAMPLES = ("bertc serve out/minilm-cpu", "bertc serve --config serving.toml --port 8000")
INSTALL = "pip install 'bertc[serve]'"


def _policies() -> Sequence[str]:
    from ..serve import planner

    return tuple(planner.POLICIES)


@click.command(cls=Command, short_help="Serve artifacts over HTTP, batched by length", examples=EXAMPLES)
@click.argument("artifacts", nargs=-1, type=FILE, metavar="[NAME=]ARTIFACT...")
@click.option("--config", "config_path", type=FILE, metavar="FILE", help="serving.toml, as plan-serving writes it.")
@click.option("--host", metavar="ADDRESS", help="Address to listen at; default: 127.0.0.1, this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="NUMBER", help="Port; 0 takes a free one. Default: 8080.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), metavar="NUMBER", help="Processes that compute; default: one for each core."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="NUMBER", help="Threads of each worker; default: the cores shared out."
)
@click.option("--policy", cls=Option, type=OneOf("policy", _policies), help="How rows are batched; default: cost.")
@click.option(
    "--deadline", "deadline_ms", type=click.FloatRange(min=1), metavar="MS", help="Longest wait for an answer; then 504."
)
@click.option("--queue", type=click.IntRange(min=1), metavar="NUMBER", help="Most rows that wait for a model; then 429.")
@click.option("--truncate/--no-truncate", default=None, help="Cut texts that are too long, or answer 413 (default).")
@click.option("--memory", metavar="SIZE", help="Most that loaded models may take, as in 8GB; the least used are unloaded.")
@click.option(
    "--worker-timeout", "worker_timeout_ms", type=click.FloatRange(min=1), metavar="MS",
    help="A worker that takes longer for a batch hangs, and is replaced; default: 60000.",
)  # fmt: skip
@click.option("--ray", metavar="ADDRESS|auto", help="Serve on the Ray cluster there, by Ray Serve.")
@click.option("--replicas", metavar="NUMBER[:MOST]", help="With --ray: servers on the cluster, up to MOST as the load asks.")
@click.option("--gpus", type=click.FloatRange(0, 64), metavar="SHARE", help="With --ray: GPUs of a replica, as 0.25.")
@click.option("--reload", is_flag=True, help="Look every second for an artifact replaced on disk, and switch to it.")
def serve(artifacts: Sequence[Path], config_path: Path | None, reload: bool, ray: str | None, **given: Any) -> None:
    """Serve ARTIFACTs over HTTP until SIGTERM or Ctrl-C; requests that are there are still answered.

    Routes: /embed, /rerank, /predict, /info (text-embeddings-inference), /v1/embeddings (OpenAI), /v2 (Open Inference Protocol),
    /metrics (Prometheus). A model is named after its folder, or NAME. Times of batches are measured once and kept beside it.
    """
    import asyncio

    if ray is None and (given["replicas"] or given["gpus"]):
        raise InputError("--replicas and --gpus are of a Ray cluster: add --ray ADDRESS or --ray auto")
    config = _config(artifacts, config_path, given)
    try:
        from .. import serve as room
        from ..serve import http
    except ImportError as error:
        raise Missing(f"serving needs {error.name}: {INSTALL}") from error

    if ray is not None:
        if reload:
            raise InputError("--reload is of one server; with --ray start again, and Ray Serve replaces its replicas one by one")
        _serve_on_ray(room, config, ray)
        return
    room.logs.to_stderr()
    with asyncio.Runner(loop_factory=http.new_loop) as runner:
        server = room.Server(config, progress())
        runner.run(http.serve(server, lambda url: print_result(f"serving at {url}"), reload=reload))


def _serve_on_ray(room: Any, config: ServingConfig, address: str) -> None:
    """Until SIGTERM or Ctrl-C, which are heard once the replicas answer; before they end it as usual."""
    import signal
    import threading

    stop, log = threading.Event(), progress()

    def started(url: str) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        print_result(f"serving at {url}")

    room.on_ray.run(config, address, log, started, stop, log.note)


def _replicas(text: str) -> tuple[int, int]:
    """`2`, or `2:8`."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})(?::([1-9][0-9]{0,3}))?", text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise InputError(f"--replicas {text!r} is no number of replicas; wanted as in 2, or 1:8 for as many as the load asks for")
    return int(found[1]), int(found[2] or found[1])


def _config(artifacts: Sequence[Path], path: Path | None, given: dict[str, Any]) -> ServingConfig:
    """serving.toml, what the command line says over it, and its artifacts."""
    try:
        import msgspec
    except ImportError as error:
        raise Missing(f"serving needs {error.name}: {INSTALL}") from error
    from ..serve import config as file

    found = file.read_config(path) if path else file.ServingConfig()
    if not artifacts and not found.models:
        raise InputError("nothing to serve: give one artifact or more, or --config serving.toml with [models]")
    models = dict(found.models)
    for name, artifact in map(_named, artifacts):
        if name in models:
            raise InputError(f"two models are called {name!r}; name one, as in other={artifact}")
        models[name] = file.ModelConfig(str(artifact))
    limits = {name: given.pop(name) for name in ("deadline_ms", "queue", "truncate")}
    kept = msgspec.structs.replace(found.limits, **{name: value for name, value in limits.items() if value is not None})
    replicas, gpus = given.pop("replicas"), given.pop("gpus")
    on_ray = dict(zip(("replicas", "max_replicas"), _replicas(replicas), strict=True)) if replicas else {}
    cluster = msgspec.structs.replace(found.ray, **on_ray, **({} if gpus is None else {"gpus": gpus}))
    changes = {name: value for name, value in given.items() if value is not None}
    made = msgspec.structs.replace(found, **changes, models=models, limits=kept, ray=cluster)
    file.check(made, "the command line")
    return made


def _named(text: Path) -> tuple[str, Path]:
    """`NAME=ARTIFACT`, or an artifact called like its folder."""
    name, equals, path = str(text).partition("=")
    if equals and "/" not in name:
        return name, Path(path)
    return re.sub(r"[^A-Za-z0-9._-]", "-", text.resolve().name), text
