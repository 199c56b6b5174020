"""Bodies read by their schema, refusals as JSON, and what every route asks of a request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ...core import BertcError, printable
from ..errors import NotFound, Refused, TooLong, TooSlow
from ..model import Request, ServedModel

if TYPE_CHECKING:
    from ..server import Server

DEADLINE = "bertc-deadline-ms"  # the header by which a caller says how long it waits
Body = TypeVar("Body")
Handler = Callable[[HttpRequest], Coroutine[Any, Any, Response]]


def server_of(request: HttpRequest) -> Server:
    """The server that an application belongs to."""
    found: Server = request.app.state.server
    return found


async def read_bytes(request: HttpRequest) -> bytes:
    """The body. TooLong over limits.body_bytes, without reading on; TooSlow where it takes longer than an answer may."""
    limits = server_of(request).config.limits
    limit, parts, size = limits.body_bytes, [], 0
    try:
        async with asyncio.timeout(limits.deadline_ms / 1e3):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise TooLong(f"the body is over {limit} bytes (limits.body_bytes)")
                parts.append(part)
    except TimeoutError as error:
        raise TooSlow(f"the body did not come within {limits.deadline_ms:g} ms (limits.deadline_ms)") from error
    return b"".join(parts)


async def read_body(request: HttpRequest, kind: type[Body]) -> Body:
    """The body as `kind`. Refused naming the field, what was found and what is wanted."""
    data = await read_bytes(request)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body: {error}") from error


def options(request: HttpRequest, truncate: bool | None = None, prompt_name: str | None = None) -> Request:
    """Deadline and limits of a request: the server's, or a shorter deadline of its own."""
    limits = server_of(request).config.limits
    deadline = limits.deadline_ms
    asked = request.headers.get(DEADLINE)
    if asked is not None:
        try:
            wanted = float(asked)
        except ValueError:
            wanted = math.nan
        if not wanted > 0:
            raise Refused(f"{DEADLINE}: {asked!r} is not a number of milliseconds above 0")
        deadline = min(deadline, wanted)
    return Request(deadline / 1e3, limits.truncate if truncate is None else truncate, limits.rows, prompt_name)


def model_of(request: HttpRequest, name: str | None = None) -> ServedModel:
    """The model that a request names, in its path or body; the only one where it names none. NotFound with the known names."""
    models = server_of(request).models
    name = name or request.path_params.get("model") or request.query_params.get("model")
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    if name is None:
        raise Refused(f"which model? add ?model=NAME; there are {', '.join(models)}")
    if name not in models:
        raise NotFound(f"no model {name!r:.120}; there are {', '.join(models)}")
    return models[name]


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def refusal(error: BaseException) -> Response:
    """What a caller is told: the message and its kind. Errors of bertc are the request's fault, others are the server's."""
    if isinstance(error, Refused):
        headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(max(error.retry_after, 0.001)))}
        headers |= {"connection": "close"} if isinstance(error, TooSlow) else {}
        return answer({"error": printable(str(error)), "error_type": error.kind}, error.status, headers)
    if isinstance(error, BertcError):
        return answer({"error": printable(str(error)), "error_type": "bad_request"}, 400)
    return answer({"error": "the server failed; its log has the cause", "error_type": "internal"}, 500)
