"""The ASGI application of a server, and uvicorn over it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...artifact import MANIFEST
from ...core import BertcError, InputError, printable
from ..errors import Refused, WorkerDied
from . import gone, oip, openai, tei
from .bodies import answer, refusal, server_of

if TYPE_CHECKING:
    from ..server import Server

RELOAD_EVERY = 1.0  # seconds
BACKLOG = 2048
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
    app = Starlette(routes=[_counted(route) for route in routes], exception_handlers={404: _no_route, 405: _no_route})
    app.state.server = server
    return app


def _counted(route: Route) -> Route:
    """The route, its refusals as JSON, each answer counted."""
    handler = route.endpoint

    async def endpoint(request: HttpRequest) -> Response:
        start = time.perf_counter()
        try:
            with gone.watched(request):
                made: Response = await handler(request)
        except (asyncio.CancelledError, ClientDisconnect):
            if (task := asyncio.current_task()) is not None and gone.is_gone(request):
                task.uncancel()
            elif task is not None and task.cancelling():
                raise
            made = Response(status_code=gone.GONE)
        except (Refused, BertcError) as error:
            made = refusal(error)
        except Exception as error:  # a fault of ours is one answer, and the server goes on
            LOG.exception("%s failed", route.path)
            made = refusal(error)
        server_of(request).metrics.request(route.path, made.status_code, time.perf_counter() - start)
        return made

    return Route(route.path, endpoint, methods=sorted(route.methods or {"GET"}))


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    """A path or a method that no route has, as JSON like every refusal."""
    status = getattr(error, "status_code", 404)
    paths = sorted({getattr(route, "path", "") for route in request.app.routes})
    what = f"no {request.method} {request.url.path!r:.120}; there are {', '.join(paths)}"
    server_of(request).metrics.request("other", status, 0.0)
    return answer({"error": printable(what), "error_type": "not_found"}, status, getattr(error, "headers", None))


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would end the process by them before the workers are gone."""
        yield


async def serve(server: Server, started: Callable[[str], None] = lambda url: None, *, reload: bool = False) -> None:
    """Start a server, answer until SIGTERM or SIGINT, answer what is there, and end. InputError where the port cannot be had."""
    config = server.config
    _allow_files()
    with contextlib.closing(_bind(config.host, config.port)) as bound:
        watching = None
        try:
            await server.start()
            runner = _uvicorn(server)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _stop, server, runner)
            bound.listen(BACKLOG)  # from here on who connects is answered
            host, port = bound.getsockname()[:2]
            started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            watching = asyncio.create_task(_watch(server)) if reload else None
            await runner.serve([bound])
        finally:
            if watching is not None:
                watching.cancel()
            await server.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


def _allow_files() -> None:
    """As many open files as this process may have: each connection is one, and 1024 is the usual beginning."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # it stays as it was
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _uvicorn(server: Server) -> _Uvicorn:
    """uvicorn, with its faster protocol and loop where they are installed; bounded heads where its protocol has no bound."""
    protocol: Any = "auto"
    with contextlib.suppress(ImportError):  # of httptools; the other protocol bounds heads itself
        from .heads import BoundedHeads

        protocol = BoundedHeads
    patience = math.ceil(server.config.limits.deadline_ms / 1e3) + 5
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
    settings |= {"http": protocol, "timeout_graceful_shutdown": patience}
    return _Uvicorn(uvicorn.Config(application(server), **settings))


async def _watch(server: Server) -> None:
    """Switch to artifacts that were replaced on disk, once they lie still: a copy takes its time."""
    done = {name: _stamp(server, name) for name in server.models}
    before = dict(done)
    while True:
        await asyncio.sleep(RELOAD_EVERY)
        for name in done:
            now, earlier = _stamp(server, name), before[name]
            before[name] = now
            if now is None or now == done[name] or now != earlier:
                continue
            try:
                await server.reload(name)
            except (BertcError, RuntimeError, Refused, WorkerDied) as error:
                LOG.error("%s: the artifact on disk is not loaded, the old one goes on: %s", name, error or "a worker ended")
            except Exception:  # a fault of ours must not end the watch
                LOG.exception("%s: the artifact on disk is not loaded, the old one goes on", name)
            done[name] = now


def _stamp(server: Server, name: str) -> Any:
    """What changes when any file of an artifact is replaced; None while there is no manifest."""
    path = server.artifacts[name].path
    try:
        found = [(str(file), file.stat()) for file in sorted(path.rglob("*"))]
    except OSError:
        return None
    stamp = [(name, each.st_ino, each.st_mtime_ns, each.st_size) for name, each in found]
    return stamp if (path / MANIFEST).is_file() else None


def _stop(server: Server, runner: uvicorn.Server) -> None:
    """The first signal ends it in order; the second does not wait for clients any more."""
    LOG.info("stopping: requests that are here are %s", "given up" if server.stopping else "answered")
    runner.force_exit = server.stopping
    server.stopping = True
    runner.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    """The port, before anything is loaded; nobody can connect yet."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host}:{port}: {why}; choose another --host or --port") from error
    return made
