"""Bodies read by their schema, refusals as JSON, and what every route asks of a request."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ...core import BertcError, RunFailed, printable
from ..errors import NotFound, Refused, TooLong, TooSlow, WrongMedia
from ..model import Request, ServedModel

if TYPE_CHECKING:
    from ..server import Server

DEADLINE = "bertc-deadline-ms"  # the header by which a caller says how long it waits
# curl says the second of what follows -d, and clients of binary tensors the third.
MEDIA = ("application/json", "application/x-www-form-urlencoded", "application/octet-stream", "text/plain", "")
Body = TypeVar("Body", bound=msgspec.Struct)
Handler = Callable[[HttpRequest], Coroutine[Any, Any, Response]]


def server_of(request: HttpRequest) -> Server:
    """The server that an application belongs to."""
    found: Server = request.app.state.server
    return found


async def read_bytes(request: HttpRequest) -> bytes:
    """The body. WrongMedia for what is no JSON; TooLong over limits.body_bytes, not read on; TooSlow beyond the deadline."""
    _check_media(request)
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
    request.state.read = True
    return b"".join(parts)


def _check_media(request: HttpRequest) -> None:
    """Said before a compressed body or a form is called malformed JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MEDIA and not kind.endswith("+json"):
        raise WrongMedia(f"content-type {kind!r:.80}: the body is JSON (application/json)")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise WrongMedia(f"content-encoding {coding!r:.80}: bodies come as they are")


async def read_body(request: HttpRequest, kind: type[Body]) -> Body:
    """The body as `kind`. Refused naming the field, what was found and what is wanted."""
    return decode(await read_bytes(request), kind)


def decode(data: bytes, kind: type[Body]) -> Body:
    """JSON as `kind`. Refused naming the field, what was found and what is wanted; also for a field that is there twice."""
    try:
        made = msgspec.json.decode(data, type=kind)
        if b"\\u" in data or any(data.count(b'"%s"' % name.encode()) > 1 for name in kind.__struct_fields__):
            json.loads(data, object_pairs_hook=_once)  # msgspec takes the last of two; only where there may be two, for the time
    except (ValueError, RecursionError) as error:  # msgspec's and those of Unicode are ValueErrors
        raise Refused(f"the body: {error}") from error
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError for a key that is there twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key in made if sum(key == each for each, _ in pairs) > 1)
        raise ValueError(f"field {twice!r:.120} is there twice")
    return made


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
    if isinstance(error, BertcError) and not isinstance(error, RunFailed):
        return answer({"error": printable(str(error)), "error_type": "bad_request"}, 400)
    return answer({"error": "the server failed; its log has the cause", "error_type": "internal"}, 500)
