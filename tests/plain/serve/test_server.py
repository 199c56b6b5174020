"""`bertc serve` as a process: every route, with the values that `bertc.load` gives, and what it says to what is wrong."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import bertc

TEXTS = ["two words", "more", "and more and more words", "two"]
EXACT = 1e-5
Server = served.Process


@pytest.fixture(scope="module")
def server(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with served.serving(*artifacts.values(), "--workers", 2, "--queue", 300, log=log) as made:
        yield made


@pytest.fixture(scope="module")
def runners(artifacts: dict[str, Path]) -> dict[str, Any]:
    return {kind: bertc.load(path) for kind, path in artifacts.items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# What is answered


def test_embed(server: Server, runners: dict[str, Any]) -> None:
    wanted = runners["embedder"].embed(TEXTS, normalize=True)
    found = server.post("/embed?model=embedder", {"inputs": TEXTS}).json()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)
    one = server.post("/embed?model=embedder", {"inputs": TEXTS[0], "normalize": False, "dimensions": 5}).json()
    np.testing.assert_allclose(one, runners["embedder"].embed(TEXTS[:1], truncate_dim=5), rtol=0, atol=EXACT)


def test_rerank(server: Server, runners: dict[str, Any]) -> None:
    pairs = [("two words", text) for text in TEXTS]
    logits = np.concatenate([runners["ranker"].run(runners["ranker"].encode([pair]))["logits"] for pair in pairs])[:, 0]
    found = server.post("/rerank?model=ranker", {"query": "two words", "texts": TEXTS}).json()
    assert [each["index"] for each in found] == np.argsort(-logits).tolist()
    np.testing.assert_allclose([each["score"] for each in found], np.sort(sigmoid(logits))[::-1], rtol=0, atol=EXACT)
    raw = server.post("/rerank?model=ranker", {"query": "two words", "texts": TEXTS, "raw_scores": True, "return_text": True})
    np.testing.assert_allclose([each["score"] for each in raw.json()], np.sort(logits)[::-1], rtol=0, atol=EXACT)
    assert [each["text"] for each in raw.json()] == [TEXTS[each["index"]] for each in raw.json()]


def test_predict(server: Server, runners: dict[str, Any]) -> None:
    logits = runners["classifier"].run(runners["classifier"].encode(["two words"]))["logits"][0]
    wanted = np.exp(logits) / np.exp(logits).sum()
    found = server.post("/predict?model=classifier", {"inputs": "two words"}).json()
    assert [each["label"] for each in found] == [served.CLASSES[at] for at in np.argsort(-logits)]
    np.testing.assert_allclose([each["score"] for each in found], np.sort(wanted)[::-1], rtol=0, atol=EXACT)
    pair = runners["classifier"].run(runners["classifier"].encode([("two", "words")]))["logits"][0]
    several = server.post("/predict?model=classifier", {"inputs": [["two", "words"], ["more"]], "raw_scores": True}).json()
    assert len(several) == 2
    np.testing.assert_allclose([each["score"] for each in several[0]], np.sort(pair)[::-1], rtol=0, atol=EXACT)
    one = server.post("/predict?model=ranker", {"inputs": ["two", "words"]}).json()
    assert len(one) == 1 and 0 < one[0]["score"] < 1, "one class: a sigmoid"


def test_openai(server: Server, runners: dict[str, Any]) -> None:
    wanted = runners["embedder"].embed(TEXTS, normalize=True)
    found = server.post("/v1/embeddings", {"input": TEXTS, "model": "embedder"}).json()
    np.testing.assert_allclose([each["embedding"] for each in found["data"]], wanted, rtol=0, atol=EXACT)
    assert found["usage"]["prompt_tokens"] == sum(len(runners["embedder"].encode([t])["input_ids"][0]) for t in TEXTS)
    coded = server.post("/v1/embeddings", {"input": "two words", "model": "embedder", "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, wanted[0], rtol=0, atol=EXACT)
    assert [each["id"] for each in server.get("/v1/models").json()["data"]] == list(served.HEADS)


def tensors(feeds: dict[str, np.ndarray], binary: bool = False) -> tuple[bytes, dict[str, str]]:
    """(a body of /v2 infer, its headers)."""
    inputs: list[dict[str, Any]] = [{"name": k, "shape": list(a.shape), "datatype": "INT64"} for k, a in feeds.items()]
    for each in inputs:
        array = feeds[each["name"]].astype(np.int64)
        each |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()}
    body = json.dumps({"id": "7", "inputs": inputs} | ({"parameters": {"binary_data_output": True}} if binary else {})).encode()
    if not binary:
        return body, {}
    blobs = b"".join(feeds[each["name"]].astype(np.int64).tobytes() for each in inputs)
    return body + blobs, {"inference-header-content-length": str(len(body))}


@pytest.mark.parametrize("kind", sorted(served.HEADS))
@pytest.mark.parametrize("binary", [False, True])
def test_open_inference_protocol(server: Server, runners: dict[str, Any], kind: str, binary: bool) -> None:
    """Four rows of one request, padded by who sends them: as the artifact's own run gives them."""
    feeds = runners[kind].encode(TEXTS)
    data, headers = tensors(feeds, binary)
    response = server.post(f"/v2/models/{kind}/infer", data=data, headers=headers)
    assert response.status_code == 200
    head = int(response.headers.get("inference-header-content-length", len(response.content)))
    (described,) = json.loads(response.content[:head])["outputs"]
    ((name, wanted),) = runners[kind].run(feeds).items()
    values = np.frombuffer(response.content[head:], "<f4") if binary else np.array(described["data"])
    assert (described["name"], described["datatype"], described["shape"]) == (name, "FP32", list(wanted.shape))
    np.testing.assert_allclose(values.reshape(wanted.shape), wanted, rtol=0, atol=EXACT)


def test_what_is_served(server: Server) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == server.get("/v2/models/ranker/ready").json() == {"ready": True}
    assert server.get("/v2/models/nope/ready").status_code == 404
    tokens = server.get("/v2/models/tokens").json()
    assert tokens["inputs"][0]["shape"] == [-1, -1] and tokens["outputs"][0]["shape"] == [-1, -1, 3]
    info = server.get("/info").json()
    assert list(info["models"]) == list(served.HEADS) and info["limits"]["queue"] == 300 and info["workers"] == 2


# What is refused


EMBED, PREDICT = "/embed?model=embedder", "/predict?model=classifier"
REFUSED: list[tuple[str, Any, int, str]] = [
    (EMBED, b"{", 400, "malformed|truncated"), (EMBED, b"", 400, "malformed|truncated"), (EMBED, b"[" * 100_000, 400, "body"),
    (EMBED, b'{"inputs": NaN}', 400, "malformed"), (EMBED, b'{"inputs": "\xff"}', 400, "body"), (EMBED, b"null", 400, "body"),
    (EMBED, b'{"inputs": "a", "dimensions": Infinity}', 400, "malformed"),
    (EMBED, b'{"inputs": "a", "inputs": "b"}', 400, "twice"),
    (EMBED, b'{"inputs": "a", "inp\\u0075ts": "b"}', 400, "twice"), (EMBED, b'{"a":' * 100_000, 400, "body"),
    (EMBED, {"inputs": ["a"] * 10_000}, 413, "limits.rows"), (EMBED, b"\x1f\x8b\x08\x00", 400, "malformed"),
    (EMBED, {"inputs": []}, 400, "one or more"), (EMBED, {"inputs": 3}, 400, r"\$\.inputs"),
    (EMBED, {"inputs": ["a", 3]}, 400, "inputs"), (EMBED, {"input": "a"}, 400, "input"), (EMBED, {}, 400, "inputs"),
    (EMBED, {"inputs": "a", "normalize": 1}, 400, "normalize"), (EMBED, {"inputs": "a", "dimensions": 0}, 400, "dimensions"),
    (EMBED, {"inputs": "a", "dimensions": 17}, 400, "16"), (EMBED, {"inputs": "a", "prompt_name": "q"}, 400, "prompt"),
    (EMBED, {"inputs": "two " * 100}, 413, "64 tokens"), (EMBED, {"inputs": ["a"] * 1025}, 413, "limits.rows"),
    (EMBED, {"inputs": ["a"] * 301}, 413, "limits.queue"), (EMBED, {"inputs": "a" * 2**20}, 413, "limits.body_bytes"),
    ("/embed", {"inputs": "a"}, 400, "ranker"), ("/embed?model=nope", {"inputs": "a"}, 404, "embedder"),
    ("/embed?model=ranker", {"inputs": "a"}, 400, "logits"), ("/v1/embeddings", {"input": "a", "model": "x"}, 404, "embedder"),
    ("/v1/embeddings", {"input": "a", "model": "embedder", "encoding_format": "hex"}, 400, "hex"),
    ("/rerank?model=ranker", {"query": "a", "texts": []}, 400, "empty"), ("/rerank?model=ranker", {"texts": ["a"]}, 400, "query"),
    ("/rerank?model=classifier", {"query": "a", "texts": ["a"]}, 400, "3 classes"),
    ("/predict?model=tokens", {"inputs": "a"}, 400, "texts, classes"), (PREDICT, {"inputs": []}, 400, "inputs"),
    (PREDICT, {"inputs": [["a", "b", "c"]]}, 400, "pair"), (PREDICT, {"inputs": ["a", ["b"]]}, 400, "pair"),
    ("/nowhere", {}, 404, "/embed"), ("/info", {}, 405, "/info"),
    ("/v2/models/nope/infer", {"inputs": []}, 404, "embedder"), ("/v2/models/tokens/infer", {"inputs": []}, 400, "input_ids"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "says"), REFUSED)
def test_what_is_wrong_is_said(server: Server, path: str, body: Any, status: int, says: str) -> None:
    import re

    found = server.post(path, data=body) if isinstance(body, bytes) else server.post(path, body)
    assert found.status_code == status
    assert re.search(says, found.json()["error"]) and len(found.content) < 2000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/xml"}, 415), ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-encoding": "gzip"}, 415), ({"content-encoding": "br, gzip"}, 415), ({"content-type": ""}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200), ({"content-encoding": "identity"}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),
    ],
)  # fmt: skip
def test_kinds_of_bodies(server: Server, headers: dict[str, str], status: int) -> None:
    found = server.post(EMBED, data=b'{"inputs": "two"}', headers=headers)
    assert found.status_code == status and (status == 200 or next(iter(headers)) in found.json()["error"])


def test_long_texts_are_cut_where_the_request_says_so(server: Server, runners: dict[str, Any]) -> None:
    found = server.post(EMBED, {"inputs": "two " * 100, "truncate": True})
    np.testing.assert_allclose(found.json(), runners["embedder"].embed(["two " * 100], normalize=True), rtol=0, atol=EXACT)


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [4, 5]} | changed


MASK = {"name": "attention_mask", "shape": [1, 2], "datatype": "INT64", "data": [1, 1]}
HUGE = 2**62
TENSORS: list[tuple[list[Any], str]] = [
    ([tensor(shape=[-1, -2]), MASK], "shape"), ([tensor(shape=[HUGE, HUGE]), MASK], "numbers"),
    ([tensor(shape=[0, 2]), MASK], "shape"),
    ([tensor(shape=[2]), MASK], "shape"), ([tensor(shape=[1] * 5000), MASK], "shape"), ([tensor(shape=[1, 2.5]), MASK], "shape"),
    ([tensor(data=[1]), MASK], "1 values"), ([tensor(data="12"), MASK], "0 values"), ([tensor(data={"a": 1}), MASK], "0 values"),
    ([tensor(data=[1, "a" * 100_000]), MASK], "data"), ([tensor(data=[[1], [2, [3]]]), MASK], "3 values"),
    ([tensor(data=[1, 2**70]), MASK], "object|fit"), ([tensor(data=[1, 1.5]), MASK], "fit"),
    ([tensor(data=[1, None]), MASK], "None"),
    ([tensor(data=[1, 40]), MASK], "40 rows"), ([tensor(data=[-1, 2]), MASK], "40 rows"),
    ([tensor(datatype="BYTES"), MASK], "FP32"),
    ([tensor(name="x"), MASK], "attention_mask"), ([tensor(), tensor()], "twice"), ([tensor()], "missing"),
    ([tensor(), {**MASK, "shape": [1, 3], "data": [1, 1, 1]}], "length"), ([tensor(), {**MASK, "shape": [2, 1]}], "rows"),
    ([tensor(shape=[1, 80], data=[1] * 80), {**MASK, "shape": [1, 80], "data": [1] * 80}], "80 tokens"),
    ([tensor(parameters={"binary_data_size": 16}), MASK], "0 bytes are left"),
    ([tensor(parameters={"binary_data_size": -1}), MASK], "binary_data_size"),
    ([tensor(parameters={"binary_data_size": True}), MASK], "binary_data_size"), ([tensor(more=1), MASK], "more"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "says"), TENSORS)
def test_hostile_tensors(server: Server, inputs: list[Any], says: str) -> None:
    import re

    found = server.post("/v2/models/embedder/infer", {"inputs": inputs})
    assert found.status_code in (400, 413) and re.search(says, found.json()["error"]), found.text


def test_hostile_bytes(server: Server) -> None:
    path = "/v2/models/embedder/infer"
    many = {"binary_data_size": 2**60}
    head = json.dumps({"inputs": [tensor(shape=[HUGE, 4], parameters=many), MASK]}).encode()
    assert server.post(path, data=head, headers={"inference-header-content-length": str(len(head))}).status_code == 400
    for length in ("-1", "x", "9" * 5000, "٣", str(len(head) + 1), "1.0", ""):
        headers = {"inference-header-content-length": length.encode("utf-8")}
        assert server.post(path, data=head, headers=headers).status_code == 400
    good, headers = tensors({name: np.ones((1, 2)) for name in ("input_ids", "attention_mask")}, binary=True)
    assert server.post(path, data=good + b"more", headers=headers).status_code == 400
    assert server.post(path, data=good[:-1], headers=headers).status_code == 400
    assert server.post(path, data=good, headers=headers).status_code == 200
    only = {"inputs": json.loads(good[: int(headers["inference-header-content-length"])])["inputs"], "outputs": [{"name": "no"}]}
    blobs, body = good[int(headers["inference-header-content-length"]) :], json.dumps(only).encode()
    found = server.post(path, data=body + blobs, headers={"inference-header-content-length": str(len(body))})
    assert found.status_code == 400 and "sentence_embedding" in found.json()["error"]


def test_deadline_and_queue(server: Server) -> None:
    """A request that is given up is 504; where many wait, 429 says when to come again; then all is well again."""
    body = {"inputs": ["two words " * 25] * 250}
    assert server.post(EMBED, body, headers={"bertc-deadline-ms": "0.01"}).status_code == 504
    for wrong in ("0", "-3", "nan", "soon", ""):
        assert server.post(EMBED, {"inputs": "a"}, headers={"bertc-deadline-ms": wrong}).status_code == 400
    for pid in server.workers():  # or two workers may be done with each request before the next one is read
        os.kill(pid, signal.SIGSTOP)
    again = threading.Timer(2.0, lambda: [os.kill(pid, signal.SIGCONT) for pid in server.workers()])
    again.start()
    found = [head.decode().lower() for head in all_at_once(server, request(json.dumps(body).encode(), "connection: close"), 12)]
    again.join()
    assert {head.split()[1] for head in found} == {"200", "429"}
    waits = [int(head.partition("retry-after: ")[2].split()[0]) for head in found if head.split()[1] == "429"]
    assert min(waits) >= 1
    assert server.post(EMBED, {"inputs": "a"}).status_code == 200


def all_at_once(server: Server, data: bytes, count: int) -> list[bytes]:
    """The heads of the answers to requests that are all sent before any is read."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(socket.create_connection(server.address, 30)) for _ in range(count)]
        for link in links:
            link.sendall(data)
        return [stack.enter_context(link.makefile("rb")).read().partition(b"\r\n\r\n")[0] for link in links]


def test_a_flood_does_not_starve_another_model(server: Server) -> None:
    stop = threading.Event()

    def flood() -> None:
        with served.requests.Session() as own:
            while not stop.is_set():
                own.post(server.url + EMBED, json={"inputs": ["two words " * 25] * 100}, timeout=30)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert server.post("/predict?model=classifier", {"inputs": "two"}, headers={"bertc-deadline-ms": "3000"}).ok
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_metrics_agree_with_what_was_sent(server: Server, runners: dict[str, Any]) -> None:
    def at(name: str) -> float:
        return server.metrics().get(name, 0.0)

    rows, tokens = 'bertc_batch_rows_sum{model="embedder"}', 'bertc_tokens_total{model="embedder"}'
    answered = 'bertc_requests_total{route="/embed",status="200"}'
    refused = 'bertc_requests_total{route="/embed",status="413"}'
    before = {name: at(name) for name in (rows, tokens, answered, refused, 'bertc_request_seconds_count{route="/embed"}')}
    for _ in range(3):
        server.post(EMBED, {"inputs": TEXTS})
    server.post(EMBED, {"inputs": "two " * 100})
    gained = {name: at(name) - value for name, value in before.items()}
    read = sum(len(runners["embedder"].encode([text])["input_ids"][0]) for text in TEXTS)
    assert list(gained.values()) == [12, 3 * read, 3, 1, 4]
    assert at('bertc_computed_tokens_total{model="embedder"}') >= at(tokens)
    assert at('bertc_waiting_rows{model="embedder"}') == 0 and at("bertc_workers") == 2
    assert at('bertc_requests_total{route="other",status="404"}') >= 1


def test_many_at_once_get_their_own_answers(server: Server, runners: dict[str, Any]) -> None:
    """The same text by several, and other texts by others, at the same time."""
    texts = [" ".join(["two", "words", "and", "more"][: at % 4 + 1] * (at % 5 + 1)) for at in range(120)]
    wanted = dict(zip(texts, runners["embedder"].embed(texts, normalize=True), strict=True))
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda text: server.post(EMBED, {"inputs": text}).json()[0], texts))
    for text, vector in zip(texts, found, strict=True):
        np.testing.assert_allclose(vector, wanted[text], rtol=0, atol=EXACT)


# Clients that misbehave


def raw(server: Server, data: bytes, seconds: float = 10.0) -> bytes:
    """What comes back for these bytes until the connection is closed or nothing more comes."""
    with socket.create_connection(server.address, timeout=seconds) as link:
        found = b""
        try:
            link.sendall(data)
            while part := link.recv(2**16):
                found += part
        except (TimeoutError, ConnectionError):
            pass
        return found


def request(body: bytes, *headers: str, path: str = EMBED) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    texts = ["two", "two words", "more", "and"] * 3
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    data = b"".join(request(body, *(["connection: close"] if at == len(texts) - 1 else [])) for at, body in enumerate(bodies))
    found = [json.loads(part.split(b"\r\n\r\n")[1])[0] for part in raw(server, data).split(b"HTTP/1.1 200 OK")[1:]]
    wanted = [server.post(EMBED, {"inputs": text}).json()[0] for text in texts]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)


def test_a_head_without_end_is_ended(server: Server) -> None:
    """A header of 4 MB, and a million small ones: 400 soon, or the connection closed, and nothing kept."""
    begin = b"POST /embed HTTP/1.1\r\nhost: x\r\n"
    for head in (begin + b"x: " + b"y" * 2**22, begin + b"a: b\r\n" * 700_000):
        start = time.monotonic()
        found = raw(server, head, seconds=15)
        assert time.monotonic() - start < 10, "the server did not wait for more"
        assert found == b"" or b" 400 " in found.splitlines()[0]


def test_a_body_that_is_too_large_is_not_read_on(server: Server) -> None:
    found = raw(server, request(b"x" * 2**22, "connection: close"))
    assert found == b"" or b" 413 " in found.splitlines()[0]
    chunked = b"POST /embed?model=embedder HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    found = raw(server, chunked + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 40 + b"0\r\n\r\n")
    assert found == b"" or b" 413 " in found.splitlines()[0]


def test_what_is_no_http(server: Server) -> None:
    for data in (b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"POST /embed HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"):
        found = raw(server, data, seconds=0.3)
        assert found == b"" or b" 400 " in found.splitlines()[0]
    upgrade = request(b"", "connection: upgrade", "upgrade: websocket", "connection: close")
    assert b" 400 " in raw(server, upgrade, seconds=2).splitlines()[0]


def test_clients_that_go_away_and_a_thousand_that_say_nothing(server: Server, runners: dict[str, Any]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    body = json.dumps({"inputs": ["two words " * 25] * 40}).encode()
    idle = [socket.create_connection(server.address, timeout=10) for _ in range(1000)]
    try:
        for at in range(20):  # a part of a head or of a body, and a whole request whose answer nobody takes
            with socket.create_connection(server.address, timeout=10) as link:
                link.sendall(request(body)[: 60 + at * 40])
            with socket.create_connection(server.address, timeout=10) as link:
                link.sendall(request(body))
        start = time.monotonic()
        found = server.post(EMBED, {"inputs": TEXTS})
        np.testing.assert_allclose(found.json(), runners["embedder"].embed(TEXTS, normalize=True), rtol=0, atol=EXACT)
        assert time.monotonic() - start < 5
    finally:
        for link in idle:
            link.close()
    served.until(lambda: server.metrics()['bertc_waiting_rows{model="embedder"}'] == 0)
    assert server.get("/v2/health/ready").ok


def test_the_log_is_json_and_has_no_traceback(server: Server) -> None:
    """Last of this module: nothing that was sent here is a fault of ours."""
    events = [json.loads(line) for line in server.events() if line.startswith("{")]
    assert events and all({"time", "level", "event"} <= set(each) for each in events)
    assert [each for each in events if "traceback" in each or each["level"] == "error"] == []
    assert "Traceback" not in server.log.read_text("utf-8")
