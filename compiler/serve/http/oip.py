"""/v2: the Open Inference Protocol (KServe's V2), JSON and its extension of binary tensors."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...core import VERSION, Feeds, TensorSpec
from ..errors import NotFound, Refused
from ..model import ServedModel
from .bodies import answer, decode, model_of, options, read_bytes, server_of

HEADER = "inference-header-content-length"
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """An input of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of infer, or its head where tensors follow as bytes."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[Wanted] | None = None
    parameters: dict[str, Any] = {}


async def infer(request: HttpRequest) -> Response:
    """Run a model on tensors."""
    data = await read_bytes(request)
    model = model_of(request)
    body, rest = _body(request, data)
    feeds = _feeds(model, body, rest)
    outputs = dict(await model.infer(feeds, options(request)))
    wanted = body.outputs if body.outputs is not None else [Wanted(name) for name in outputs]
    for each in wanted:
        if each.name not in outputs:
            raise Refused(f"no output {each.name!r:.120}; model {model.name!r} gives {', '.join(outputs)}")
    return _answer(model.name, body, [(each, outputs[each.name]) for each in wanted])


def _body(request: HttpRequest, data: bytes) -> tuple[InferBody, bytes]:
    """(the JSON part, the bytes behind it)."""
    length = request.headers.get(HEADER)
    if length is not None and not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= len(data)):
        raise Refused(f"{HEADER}: {length!r:.40} is not the bytes of the JSON in a body of {len(data)}")
    head = len(data) if length is None else int(length)
    return decode(data[:head], InferBody), data[head:]


def _feeds(model: ServedModel, body: InferBody, rest: bytes) -> Feeds:
    known = {spec.name: spec for spec in model.inputs}
    feeds: dict[str, np.ndarray] = {}
    for tensor in body.inputs:
        if tensor.name not in known or tensor.name in feeds:
            what = "given twice" if tensor.name in feeds else f"unknown; model {model.name!r} takes {', '.join(known)}"
            raise Refused(f"input {tensor.name!r:.120} is {what}")
        size = tensor.parameters.get("binary_data_size")
        if size is not None and not (type(size) is int and 0 <= size <= len(rest)):
            raise Refused(f"input {tensor.name!r:.120}: binary_data_size {size!r:.40}, and {len(rest)} bytes are left")
        feeds[tensor.name] = _array(known[tensor.name], tensor, rest[:size] if size is not None else None)
        rest = rest[size or 0 :]
    missing = [name for name in known if name not in feeds]
    if missing or rest:
        raise Refused(f"inputs missing: {', '.join(missing)}" if missing else f"{len(rest)} bytes behind the last tensor")
    return feeds


def _array(spec: TensorSpec, tensor: Tensor, raw: bytes | None) -> np.ndarray:
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise Refused(f"input {tensor.name!r}: datatype {tensor.datatype!r:.40}; known: {', '.join(DATATYPES)}")
    if any(size < 1 for size in tensor.shape) or len(tensor.shape) != len(spec.dims):
        raise Refused(f"input {spec} got shape {tensor.shape!r:.80}")
    count = math.prod(tensor.shape)
    if raw is not None:
        if len(raw) != count * np.dtype(dtype).itemsize:
            raise Refused(f"input {tensor.name!r}: {len(raw)} bytes for {tensor.shape} of {tensor.datatype}")
        return _cast(spec, np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(tensor.shape))
    try:
        values = _flat(tensor.data)
        found = np.asarray(values)
        if found.size != count or found.dtype.kind not in "biuf":
            raise ValueError(f"{found.size} values of {found.dtype} in data")
        return _cast(spec, found.reshape(tensor.shape))
    except ValueError as error:
        raise Refused(f"input {tensor.name!r}: {error}; wanted {count} numbers for shape {tensor.shape}") from error


def _flat(data: Any) -> list[Any]:
    """The numbers of nested lists, in order. ValueError for anything else: numpy would make room for a text in every place."""
    found: list[Any] = []
    left = [data] if isinstance(data, list) else []
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += reversed(value)
        elif isinstance(value, (int, float)):
            found.append(value)
        else:
            raise ValueError(f"{value!r:.40} in data")
    return found


def _cast(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """To the dtype of the model, where no value changes but by a float's own rounding."""
    wanted = np.dtype(spec.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        made = array.astype(wanted)
    if wanted.kind in "iub" and not np.array_equal(made, array):
        raise Refused(f"input {spec} got {array.dtype} values that do not fit {wanted}")
    return made


def _answer(name: str, body: InferBody, outputs: list[tuple[Wanted, np.ndarray]]) -> Response:
    all_binary = body.parameters.get("binary_data_output") is True
    described, blobs = [], []
    for wanted, array in outputs:
        entry: dict[str, Any] = {"name": wanted.name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name]}
        if wanted.parameters.get("binary_data", all_binary) is True:
            blobs.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    made = {"model_name": name, "outputs": described} | ({"id": body.id} if body.id is not None else {})
    if not blobs:
        return answer(made)
    head = msgspec.json.encode(made)
    return Response(b"".join([head, *blobs]), headers={HEADER: str(len(head))}, media_type="application/octet-stream")


async def metadata(request: HttpRequest) -> Response:
    """What this server is."""
    return answer({"name": "bertc", "version": VERSION, "extensions": ["binary_tensor_data"]})


async def live(request: HttpRequest) -> Response:
    """200 while the process answers."""
    return answer({"live": True})


async def ready(request: HttpRequest) -> Response:
    """200 while requests are taken and a worker lives, else 503."""
    is_ready = server_of(request).ready
    return answer({"ready": is_ready}, 200 if is_ready else 503)


async def model_metadata(request: HttpRequest) -> Response:
    """The tensors of a model; -1 is any size."""
    model = model_of(request)
    sides = {"inputs": model.inputs, "outputs": model.outputs}
    described = {side: [_spec(spec) for spec in specs] for side, specs in sides.items()}
    server = server_of(request)
    known = server.describe_model(model.name)
    more = {"parameters": {key: known[key] for key in ("padded", "why_not_padded", "max_rows") if key in known}}
    return answer({"name": model.name, "platform": f"bertc_{server.target_of(model.name)}"} | described | more)


async def model_ready(request: HttpRequest) -> Response:
    """As ready, for a model that is there."""
    try:
        model_of(request)
    except NotFound:
        return answer({"ready": False}, 404)
    return await ready(request)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else -1 for dim in spec.dims]
    return {"name": spec.name, "datatype": NAMES.get(spec.dtype, spec.dtype), "shape": shape}


BODIES: dict[str, type[msgspec.Struct]] = {"/v2/models/{model}/infer": InferBody}
ROUTES = [
    Route("/v2", metadata),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    Route("/v2/models/{model}", model_metadata),
    Route("/v2/models/{model}/ready", model_ready),
    Route("/v2/models/{model}/infer", infer, methods=["POST"]),
]
