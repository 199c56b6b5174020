"""From the port to the drain: uvicorn over a started server, signals, artifacts replaced on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn

from ...artifact import MANIFEST
from ...core import BertcError, InputError
from ..errors import Refused, WorkerDied
from .app import uvicorn_over
from .own_work import measure_own_work

if TYPE_CHECKING:
    from ..server import Server

RELOAD_EVERY = 1.0  # seconds
BACKLOG = 2048
LOG = logging.getLogger("bertc.serve")


async def serve(server: Server, started: Callable[[str], None] = lambda url: None, *, reload: bool = False) -> None:
    """Start a server, answer until SIGTERM or SIGINT, answer what is there, and end. InputError where the port cannot be had."""
    config = server.config
    _allow_files()
    with contextlib.closing(_bind(config.host, config.port)) as bound:
        watching = None
        try:
            await server.start()
            await measure_own_work(server)
            runner = uvicorn_over(server)
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
