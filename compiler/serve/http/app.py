"""The ASGI application of a server, and uvicorn over it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...core import BertcError, printable
from ..errors import Refused
from . import gone, oip, openai, openapi, tei
from .bodies import answer, refusal, server_of

if TYPE_CHECKING:
    from ..server import Server

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
    bodies: dict[str, type[msgspec.Struct]] = {**tei.BODIES, **openai.BODIES, **oip.BODIES}
    routes.append(openapi.route_over(routes.copy(), bodies))
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


def uvicorn_over(server: Server) -> _Uvicorn:
    """uvicorn, with its faster protocol and loop where they are installed; bounded heads where its protocol has no bound."""
    protocol: Any = "auto"
    with contextlib.suppress(ImportError):  # of httptools; the other protocol bounds heads itself
        from .heads import BoundedHeads

        protocol = BoundedHeads
    patience = math.ceil(server.config.limits.deadline_ms / 1e3) + 5
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
    settings |= {"http": protocol, "timeout_graceful_shutdown": patience}
    return _Uvicorn(uvicorn.Config(application(server), **settings))
