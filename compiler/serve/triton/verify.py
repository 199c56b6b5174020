"""Sends the goldens of the packaged models to a running Triton server, over HTTP and gRPC, and compares its answers.

python verify.py [--http HOST:PORT] [--grpc HOST:PORT]    needs: pip install "tritonclient[http,grpc]"
Exit 0: all within their budgets. 1: an answer is not, or the two protocols differ. 2: a server that does not answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]


def main() -> int:
    """Compare every model of models.json; prints a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--http", default="localhost:8000", metavar="HOST:PORT", help="'' leaves HTTP out")
    parser.add_argument("--grpc", default="localhost:8001", metavar="HOST:PORT", help="'' leaves gRPC out")
    parser.add_argument("--model", action="append", metavar="NAME", help="this model alone")
    given = parser.parse_args()
    described = json.loads((HERE / "goldens" / "models.json").read_text("utf-8"))
    models = {name: each for name, each in described.items() if not given.model or name in given.model}
    if not models:
        print(f"no model {given.model}; packaged: {', '.join(described)}")  # noqa: T201
        return 2
    clients = {kind: url for kind, url in (("http", given.http), ("grpc", given.grpc)) if url}
    broken = 0
    for name, each in models.items():
        try:
            lines = list(compare(each.get("model", name), each, clients))
        except Exception as error:  # noqa: BLE001 - of either client: whatever it is, the model did not answer
            print(f"{name}: no answer: {type(error).__name__}: {error}")  # noqa: T201
            return 2
        for fine, line in lines:
            broken += not fine
            print(f"{name}: {'ok' if fine else 'WRONG'}: {line}")  # noqa: T201
    return int(broken > 0)


def compare(model: str, described: Mapping[str, Any], clients: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """(whether it is right, what was compared) for each sample."""
    for sample, feeds, wanted, masked in samples(described):
        answers = {kind: ask(kind, url, model, feeds) for kind, url in clients.items()}
        for kind, found in answers.items():
            for output, array in wanted.items():
                fine, line = judge(found[output], array, masked.get(output), described["limits"])
                yield fine, f"{sample}, {output} over {kind}: {line}"
        kinds = list(answers)
        if len(kinds) == 2:
            same = all(np.array_equal(answers[kinds[0]][output], answers[kinds[1]][output], equal_nan=True) for output in wanted)
            close = same or all(
                np.allclose(answers[kinds[0]][output], answers[kinds[1]][output], rtol=1e-3, atol=1e-5) for output in wanted
            )
            how = "equal bit by bit" if same else "close, not equal: it depends on what else was in their batches"
            yield close, f"{sample}: both protocols are {how if close else 'different'}"


def samples(described: Mapping[str, Any]) -> Iterator[tuple[str, Arrays, Arrays, Arrays]]:
    """(label, feeds, wanted outputs, where each output is compared)."""
    with np.load(HERE / "goldens" / described["file"]) as file:
        arrays = {key: file[key] for key in file.files}
    for number in sorted({key.partition("/")[0] for key in arrays}, key=int):
        parts: dict[str, Arrays] = {"in": {}, "out": {}, "at": {}}
        for key, array in arrays.items():
            at, kind, output = key.split("/", 2)
            if at == number:
                parts[kind][output] = array
        texts = {name: array.astype(object) for name, array in parts["in"].items() if array.dtype.kind == "U"}
        yield f"sample {number}", parts["in"] | texts, parts["out"], parts["at"]


def ask(kind: str, url: str, model: str, feeds: Arrays) -> Arrays:
    """One request."""
    if kind == "http":
        import tritonclient.http as client
    else:
        import tritonclient.grpc as client
    inputs = []
    for name, array in feeds.items():
        sent = (
            np.array([str(each).encode() for each in array.ravel()], object).reshape(array.shape)
            if array.dtype == object
            else array
        )
        datatype = "BYTES" if array.dtype == object else client_type(sent)
        inputs.append(client.InferInput(name, list(sent.shape), datatype))
        inputs[-1].set_data_from_numpy(sent)
    with client.InferenceServerClient(url) as server:
        answer = server.infer(model, inputs)
        names = [each["name"] for each in answer.get_response()["outputs"]] if kind == "http" else [
            each.name for each in answer.get_response().outputs
        ]  # fmt: skip
        return {name: answer.as_numpy(name) for name in names}


def client_type(array: np.ndarray) -> str:
    """What Triton calls a dtype."""
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))


def judge(got: np.ndarray, wanted: np.ndarray, where: np.ndarray | None, limits: Mapping[str, float]) -> tuple[bool, str]:
    """Within the budget of the artifact, on what is compared: not on padding, nor on rows without a token."""
    if got.shape != wanted.shape:
        return False, f"shape {list(got.shape)}, the source has {list(wanted.shape)}"
    keep = np.ones(wanted.shape[:1], bool) if where is None else where.astype(bool)
    one, other = got[keep].astype(np.float64), wanted[keep].astype(np.float64)
    if "equal" in limits:
        return bool(np.array_equal(one, other)), "equal" if np.array_equal(one, other) else "not equal"
    difference = float(np.abs(one - other).max(initial=0.0))
    relative = difference / max(float(np.abs(other).max(initial=0.0)), 1e-12)
    flat, flat_wanted = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(flat_wanted, axis=1)
    cosine = float(((flat * flat_wanted).sum(1) / np.maximum(norms, 1e-30)).min(initial=1.0))
    noise = float(((one - other) ** 2).sum())
    sqnr = 10 * float(np.log10(max(float((other**2).sum()), 1e-30) / max(noise, 1e-30)))
    measured = {"rel": relative, "cosine": cosine, "sqnr_db": sqnr}
    fine = bool(np.isfinite(one).all() or not np.isfinite(other).all())
    for name, limit in limits.items():
        fine &= measured[name] <= limit if name == "rel" else measured[name] >= limit
    told = ", ".join(f"{name} {'<=' if name == 'rel' else '>='} {limit:g}" for name, limit in limits.items())
    return fine, f"rel {relative:.1e}, cosine {cosine:.7f}, SQNR {sqnr:.0f} dB (budget: {told or 'none on numbers'})"


if __name__ == "__main__":
    sys.exit(main())
