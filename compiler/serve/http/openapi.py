"""/openapi.json: what the routes take and answer, made from the schemas that read the bodies (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...core import VERSION
from ..errors import DeadlinePassed, NotFound, Overloaded, Poisonous, Refused, TooLong, TooSlow, Unavailable, WrongMedia
from .bodies import DEADLINE, answer, server_of

REFUSALS = (Refused, NotFound, TooSlow, TooLong, WrongMedia, Poisonous, Overloaded, Unavailable, DeadlinePassed)
SCHEMAS = "#/components/schemas/{name}"


class Refusal(msgspec.Struct):
    """Why a request is not answered."""

    error: str
    error_type: str


def document(routes: Iterable[Route], bodies: Mapping[str, type[msgspec.Struct]], models: Iterable[str]) -> dict[str, Any]:
    """The document of a server: `bodies` by path, the names of its `models`."""
    _, components = msgspec.json.schema_components([*bodies.values(), Refusal], ref_template=SCHEMAS)
    return {
        "openapi": "3.1.0",
        "info": {"title": "bertc serve", "version": VERSION},
        "paths": {route.path: _path(route, bodies.get(route.path), list(models)) for route in routes},
        "components": {"schemas": components},
    }


def _path(route: Route, body: type[msgspec.Struct] | None, models: list[str]) -> dict[str, Any]:
    named = "{model}" in route.path
    told = {"summary": " ".join((route.endpoint.__doc__ or "").split()), "responses": _responses(taken=body is not None)}
    known = {"type": "string", "enum": models}
    parameters: list[dict[str, Any]] = [{"name": "model", "in": "path", "required": True, "schema": known}] if named else []
    if body is not None:
        parameters += [] if named else [{"name": "model", "in": "query", "schema": known}]
        parameters.append({"name": DEADLINE, "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}})
        content = {"application/json": {"schema": {"$ref": SCHEMAS.format(name=body.__name__)}}}
        told["requestBody"] = {"required": True, "content": content}
    methods = sorted((route.methods or {"GET"}) - {"HEAD"})
    return {method.lower(): told | {"parameters": parameters} for method in methods}


def _responses(taken: bool) -> dict[str, Any]:
    """200, and each refusal that a route can give; one without a body gives 503 (not ready) and 404 (no such model) alone."""
    refusal = {"application/json": {"schema": {"$ref": SCHEMAS.format(name=Refusal.__name__)}}}
    kinds = REFUSALS if taken else (NotFound, Unavailable)
    # What is not ready, and a model that is not there, are told in the form of the Open Inference Protocol.
    told = {str(kind.status): {"description": kind.__doc__} | ({"content": refusal} if taken else {}) for kind in kinds}
    return {"200": {"description": "the answer"}, **told}


def route_over(routes: list[Route], bodies: Mapping[str, type[msgspec.Struct]]) -> Route:
    """The route that tells of the others."""

    async def openapi(request: HttpRequest) -> Response:
        """This document."""
        return answer(document(routes, bodies, server_of(request).models))

    return Route("/openapi.json", openapi)
