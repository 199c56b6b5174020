"""/embed, /rerank and /predict, as text-embeddings-inference has them."""

from __future__ import annotations

import msgspec
import numpy as np
from scipy.special import expit, softmax
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...data import Text
from ..errors import Refused
from ..model import ServedModel
from .bodies import answer, model_of, options, read_body, server_of


class EmbedBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /embed."""

    inputs: str | list[str]
    normalize: bool = True
    truncate: bool | None = None
    prompt_name: str | None = None
    dimensions: int | None = None


class RerankBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /rerank: a query and its candidates."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class PredictBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /predict: a text, [a text], a pair [a, b], or a list of such."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False
    truncate: bool | None = None


async def embed(request: HttpRequest) -> Response:
    """[[...]]: a vector for each text."""
    body = await read_body(request, EmbedBody)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    model = model_of(request)
    made, _ = await model.embed(texts, options(request, body.truncate, body.prompt_name), body.normalize, body.dimensions)
    return answer(made.tolist())


async def rerank(request: HttpRequest) -> Response:
    """[{"index", "score"}], the best first. Candidates are rows of the queue like any others: batched by length."""
    body = await read_body(request, RerankBody)
    model = model_of(request)
    if not body.texts:
        raise Refused("texts is empty; give the candidates")
    logits = await model.logits([(body.query, text) for text in body.texts], options(request, body.truncate))
    if logits.shape[1] != 1:
        raise Refused(f"model {model.name!r} gives {logits.shape[1]} classes; a ranker gives one score (use /predict)")
    scores = logits[:, 0] if body.raw_scores else expit(logits[:, 0])
    order = np.argsort(-logits[:, 0], kind="stable").tolist()
    ranked = [{"index": at, "score": float(scores[at])} for at in order]
    return answer([each | {"text": body.texts[int(each["index"])]} for each in ranked] if body.return_text else ranked)


async def predict(request: HttpRequest) -> Response:
    """[{"label", "score"}] for each text, the likeliest first; for one text the list alone."""
    body = await read_body(request, PredictBody)
    model = model_of(request)
    texts, single = _texts(body.inputs)
    logits = await model.logits(texts, options(request, body.truncate))
    found = [_classes(model, row, body.raw_scores) for row in logits]
    return answer(found[0] if single else found)


def _classes(model: ServedModel, logits: np.ndarray, raw: bool) -> list[dict[str, object]]:
    scores = logits if raw else expit(logits) if len(logits) == 1 or model.multi_label else softmax(logits)
    order = np.argsort(-logits, kind="stable").tolist()
    return [{"label": model.label(at), "score": float(scores[at])} for at in order]


def _texts(inputs: str | list[str | list[str]]) -> tuple[list[Text], bool]:
    """(the texts and pairs, whether one alone was meant)."""
    if isinstance(inputs, str):
        return [inputs], True
    strings = [each for each in inputs if isinstance(each, str)]
    if strings and len(strings) == len(inputs) and len(inputs) <= 2:
        return [strings[0] if len(strings) == 1 else (strings[0], strings[1])], True
    lists = [each for each in inputs if isinstance(each, list)]
    if len(lists) != len(inputs) or not lists or not all(1 <= len(each) <= 2 for each in lists):
        raise Refused('inputs: wanted "a text", ["a", "pair"], or a list of [text] and [text, pair]')
    return [each[0] if len(each) == 1 else (each[0], each[1]) for each in lists], False


async def info(request: HttpRequest) -> Response:
    """What is served, and its limits."""
    server = server_of(request)
    return answer(server.describe())


BODIES: dict[str, type[msgspec.Struct]] = {"/embed": EmbedBody, "/rerank": RerankBody, "/predict": PredictBody}
ROUTES = [
    Route("/embed", embed, methods=["POST"]),
    Route("/rerank", rerank, methods=["POST"]),
    Route("/predict", predict, methods=["POST"]),
    Route("/info", info),
]
