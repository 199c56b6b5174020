"""Clients that go away before they are answered: their rows leave the queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request as HttpRequest

AFTER = 0.05  # seconds; what is answered sooner is not watched, which would cost every request a task
GONE = 499  # what nginx writes for it; nobody reads it but the metrics


@contextlib.contextmanager
def watched(request: HttpRequest) -> Iterator[None]:
    """Cancel the block when its client hangs up; `is_gone` then says so."""
    task, watches = asyncio.current_task(), list[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    timer = loop.call_later(AFTER, lambda: watches.append(loop.create_task(_watch(request, task))))
    try:
        yield
    finally:
        timer.cancel()
        for each in watches:
            each.cancel()


def is_gone(request: HttpRequest) -> bool:
    """Whether the client of a request hung up."""
    return getattr(request.state, "gone", False)


async def _watch(request: HttpRequest, task: asyncio.Task[Any] | None) -> None:
    """What comes after the body is the end of the connection; before it the body's reader sees the end itself."""
    if not getattr(request.state, "read", False):
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass
    request.state.gone = True
    if task is not None:
        task.cancel()
