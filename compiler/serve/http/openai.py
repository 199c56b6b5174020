"""/v1/embeddings and /v1/models, in OpenAI's form."""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from .bodies import answer, model_of, options, read_body, server_of


class EmbeddingsBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /v1/embeddings. `user` is taken and not used."""

    input: str | list[str]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


async def embeddings(request: HttpRequest) -> Response:
    """Unit vectors; base64 is of little-endian float32."""
    body = await read_body(request, EmbeddingsBody)
    texts = [body.input] if isinstance(body.input, str) else body.input
    model = model_of(request, body.model)
    vectors, tokens = await model.embed(texts, options(request), True, body.dimensions)
    made = [_encoded(each) for each in vectors] if body.encoding_format == "base64" else vectors.tolist()
    data = [{"object": "embedding", "index": at, "embedding": each} for at, each in enumerate(made)]
    return answer(
        {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )


def _encoded(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def models(request: HttpRequest) -> Response:
    """The names of the models."""
    data = [{"id": name, "object": "model", "owned_by": "bertc"} for name in server_of(request).models]
    return answer({"object": "list", "data": data})


BODIES: dict[str, type[msgspec.Struct]] = {"/v1/embeddings": EmbeddingsBody}
ROUTES = [Route("/v1/embeddings", embeddings, methods=["POST"]), Route("/v1/models", models)]
