"""The ASGI application of a server, and uvicorn over it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...artifact import MANIFEST
from ...core import BertcError, InputError
from ..errors import Refused, WorkerDied
from . import oip, openai, tei
from .bodies import refusal, server_of

if TYPE_CHECKING:
    from ..server import Server

RELOAD_EVERY = 1.0  # seconds
LOG = logging.getLogger("bertc.serve")
Asgi = Callable[..., Any]


async def metrics(request: HttpRequest) -> Response:
    """Prometheus' text form."""
    server = server_of(request)
    text = server.metrics.text(server.scheduler, server.pool.alive, server.pool.ledger)
    return Response(text, media_type="text/plain; version=0.0.4")


def application(server: Server) -> Starlette:
    """The routes of all protocols over a started server."""
    routes = [*tei.ROUTES, *openai.ROUTES, *oip.ROUTES, Route("/metrics", metrics)]
    app = Starlette(routes=[_counted(route) for route in routes])
    app.state.server = server
    return app


def _counted(route: Route) -> Route:
    """The route, its refusals as JSON, each answer counted."""
    handler = route.endpoint

    async def endpoint(request: HttpRequest) -> Response:
        start = time.perf_counter()
        try:
            made: Response = await handler(request)
        except (Refused, BertcError) as error:
            made = refusal(error)
        except Exception as error:  # a fault of ours is one answer, and the server goes on
            LOG.exception("%s failed", route.path)
            made = refusal(error)
        server_of(request).metrics.request(route.path, made.status_code, time.perf_counter() - start)
        return made

    return Route(route.path, endpoint, methods=sorted(route.methods or {"GET"}))


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would end the process by them before the workers are gone."""
        yield


async def serve(server: Server, started: Callable[[str], None] = lambda url: None, *, reload: bool = False) -> None:
    """Start a server, answer until SIGTERM or SIGINT, answer what is there, and end. InputError where the port cannot be had."""
    config = server.config
    await server.start()
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 60}
    runner = _Uvicorn(uvicorn.Config(application(server), config.host, config.port, backlog=2048, **settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, runner)
    sockets = [_listen(config.host, config.port)]
    host, port = sockets[0].getsockname()[:2]
    started(f"http://{host}:{port}")
    watching = asyncio.create_task(_watch(server)) if reload else None
    try:
        await runner.serve(sockets)
    finally:
        if watching is not None:
            watching.cancel()
        await server.close()


async def _watch(server: Server) -> None:
    """Switch to artifacts that were replaced on disk."""
    seen = {name: _stamp(server, name) for name in server.models}
    while True:
        await asyncio.sleep(RELOAD_EVERY)
        for name, before in seen.items():
            now = _stamp(server, name)
            if now in (None, before):
                continue
            try:
                await server.reload(name)
            except (BertcError, RuntimeError, WorkerDied) as error:
                LOG.error("%s: the artifact on disk is not loaded, the old one goes on: %s", name, error)
            seen[name] = now


def _stamp(server: Server, name: str) -> tuple[int, int] | None:
    """What changes when a manifest is replaced; None while there is none."""
    try:
        found = (server.artifacts[name].path / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _stop(server: Server, runner: uvicorn.Server) -> None:
    LOG.info("stopping: requests that are here are answered")
    server.stopping = True
    runner.should_exit = True


def _listen(host: str, port: int) -> Any:
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        raise InputError(f"cannot listen at {host}:{port}: {error.strerror or error}; choose another with --port") from error
    return made
