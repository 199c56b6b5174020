"""The life of a server: what it refuses at start, workers that die, artifacts that are replaced, and its end."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import bertc
from bertc.cli import run

TEXTS = ["two words", "more", "and more and more words", "two"]
BODY = {"inputs": TEXTS}
EXACT = 1e-5


@pytest.fixture
def server(artifacts: dict[str, Path], tmp_path: Path) -> Iterator[served.Process]:
    with served.serving(artifacts["embedder"], "--workers", 2, log=tmp_path / "log") as made:
        yield made


@pytest.fixture(scope="module")
def wanted(artifacts: dict[str, Path]) -> np.ndarray:
    return bertc.load(artifacts["embedder"]).embed(TEXTS, normalize=True)


class Load:
    """Clients that ask the same again and again, each over its own connection, while something happens to the server."""

    def __init__(self, server: served.Process, answers: list[np.ndarray], clients: int = 3) -> None:
        self.server, self.answers = server, answers
        self.seen = [0] * len(answers)
        self.wrong: list[Any] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with served.requests.Session() as own:
            while not self.stop.wait(0.01):
                try:
                    found = own.post(self.server.url + "/embed", json=BODY, timeout=30)
                    errors = [np.abs(np.array(found.json()) - each).max() for each in self.answers] if found.ok else []
                except (served.requests.RequestException, ValueError) as error:
                    self.wrong.append(repr(error))
                    continue
                if errors and min(errors) < EXACT:
                    self.seen[int(np.argmin(errors))] += 1
                else:
                    self.wrong.append((found.status_code, found.text[:200]))

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def lived(server: served.Process) -> tuple[float, float]:
    """(workers that live, workers that died)."""
    metrics = server.metrics()
    return metrics["bertc_workers"], metrics["bertc_worker_deaths_total"]


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_worker_costs_no_answer(server: served.Process, wanted: np.ndarray) -> None:
    with Load(server, [wanted]) as load:
        for deaths in (1, 2):
            time.sleep(0.2)
            before = server.workers()
            kill(before[:1])
            served.until(lambda deaths=deaths: lived(server) == (2, deaths))
            assert before[0] not in server.workers()
    assert load.wrong == [] and load.seen[0] > 20
    metrics = server.metrics()
    assert metrics['bertc_requests_total{route="/embed",status="200"}'] == load.seen[0], "each is answered once"
    all_at_once_again_and_again(server, wanted)
    assert server.stop() == 0


def all_at_once_again_and_again(server: served.Process, wanted: np.ndarray) -> None:
    """More often than a server would give up that counts deaths: what waits is answered by those that come after."""
    for round in (1, 2):
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            kill(server.workers())
            answer = threads.submit(server.post, "/embed", BODY)
            np.testing.assert_allclose(answer.result().json(), wanted, rtol=0, atol=EXACT)
        served.until(lambda round=round: lived(server) == (2, 2 + 2 * round))
    assert server.get("/v2/health/ready").ok


def test_sigterm_answers_what_is_there_and_leaves_nothing(server: served.Process) -> None:
    """250 rows are under way when the signal comes: they are answered, then the exit code is 0 and no process is left."""
    body = {"inputs": ["two words " * 20] * 900}
    workers = server.workers()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(served.requests.post, server.url + "/embed", json=body, timeout=30) for _ in range(1)]
        served.until(lambda: server.metrics()['bertc_waiting_rows{model="embedder"}'] > 0)
        assert server.stop() == 0
        assert [len(each.result().json()) for each in answers] == [900]
    assert len(workers) == 2
    served.until(gone(workers), 5)
    with pytest.raises(served.requests.ConnectionError):
        served.requests.get(server.url + "/info", timeout=5)


def test_a_client_that_sends_nothing_more_does_not_hold_up_the_end(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """Half a body: 408 when its time is over; half a head and an idle connection: closed at the end."""
    words = [artifacts["embedder"], "--workers", 1, "--deadline", 500]
    with served.serving(*words, log=tmp_path / "log") as server:
        head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        with socket.create_connection(server.address, 10) as link, socket.create_connection(server.address, 10) as half:
            link.sendall(head + b"{")
            half.sendall(head[:30])
            found = link.recv(2**16)
            assert b" 408 " in found.splitlines()[0] and b"connection: close" in found
            assert server.post("/embed", BODY).ok
            start = time.monotonic()
            assert server.stop() == 0 and time.monotonic() - start < 8


# Artifacts that are replaced


def replace(path: Path, by: Path) -> None:
    """As a build does: the new one beside it, then its name."""
    shutil.copytree(by, path.with_name("new"))
    path.rename(path.with_name(f"old-{time.monotonic_ns()}"))
    path.with_name("new").rename(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another weight."""
    return served.artifact(tmp_path_factory.mktemp("other"), "embedder", changed=2.0)


def test_reload_switches_without_a_failed_request(
    artifacts: dict[str, Path], other: Path, wanted: np.ndarray, tmp_path: Path
) -> None:
    path = shutil.copytree(artifacts["embedder"], tmp_path / "model")
    new = bertc.load(other).embed(TEXTS, normalize=True)
    assert np.abs(new - wanted).max() > 0.01
    with served.serving(path, "--workers", 2, "--reload", log=tmp_path / "log") as server:
        with Load(server, [wanted, new]) as load:
            served.until(lambda: load.seen[0] > 10)
            damaged = path / "model.onnx"
            whole = damaged.read_bytes()
            (path / "manifest.json").write_bytes((other / "manifest.json").read_bytes())  # a copy that is not complete yet
            served.until(lambda: "the old one goes on" in server.log.read_text())
            damaged.write_bytes(whole)
            assert load.seen[1] == 0
            replace(path, other)
            served.until(lambda: load.seen[1] > 10, 40)
            kill(server.workers()[:1])
            served.until(lambda: server.metrics().get("bertc_worker_deaths_total") == 1 and len(server.workers()) == 2)
            before = load.seen[0]
            served.until(lambda: load.seen[1] > 60)
        assert load.wrong == [] and load.seen[0] == before, "after the switch nobody gets the old one's answer"
        metrics = server.metrics()
        assert metrics['bertc_batch_rows_sum{model="model"}'] >= 4 * sum(load.seen), "one name before and after"
        assert "Traceback" not in server.log.read_text()
        assert server.stop() == 0


def test_a_worker_that_comes_later_never_has_another_artifact(
    artifacts: dict[str, Path], other: Path, wanted: np.ndarray, tmp_path: Path
) -> None:
    """Without --reload: replaced on disk, then a worker dies. Its successor has what was loaded at the start."""
    path = shutil.copytree(artifacts["embedder"], tmp_path / "model")
    with served.serving(path, "--workers", 2, log=tmp_path / "log") as server:
        replace(path, other)
        kill(server.workers()[:1])
        served.until(lambda: server.metrics()["bertc_worker_deaths_total"] == 1 and server.metrics()["bertc_workers"] == 2)
        for _ in range(10):
            np.testing.assert_allclose(server.post("/embed", BODY).json(), wanted, rtol=0, atol=EXACT)


# What is refused at start


def refused(words: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["serve", *map(str, words)]) == 2
    return capsys.readouterr().err


def started(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bertc", "serve", str(path), "--port", "0", "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_artifact_that_was_changed(artifacts: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(artifacts["embedder"], tmp_path / "model")
    data = bytearray((path / "model.onnx").read_bytes())
    data[-1] ^= 1
    (path / "model.onnx").write_bytes(data)
    found = started(path)
    assert found.returncode in (1, 2)
    assert "model.onnx" in found.stderr and "Traceback" not in found.stderr and "serving at" not in found.stdout


def test_a_port_in_use(artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anything is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        start = time.monotonic()
        said = refused([artifacts["embedder"], "--port", taken.getsockname()[1]], capsys)
    assert "--port" in said and time.monotonic() - start < 5 and "loaded" not in said


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 100, "..", "203.0.113.1"])
def test_a_host_that_is_none(artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert "--host" in refused([artifacts["embedder"], "--host", host, "--port", 0], capsys)


def test_artifacts_that_are_none(artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = artifacts["embedder"]
    assert "nothing to serve" in refused([], capsys)
    assert "missing" in refused([tmp_path / "missing", "--port", 0], capsys)
    assert "name one" in refused([path, path], capsys)
    assert "a model is called" in refused([f"a b={path}", "--port", 0], capsys)


def test_a_damaged_cost_file_stops_the_start(artifacts: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(artifacts["embedder"], tmp_path / "model")
    (tmp_path / "model.cost.json").write_text(json.dumps({"format": 1}))
    found = started(path)
    assert found.returncode == 2 and "model.cost.json" in found.stderr and "delete it" in found.stderr


def test_who_goes_away_leaves_the_queue(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """A request of many rows whose client hangs up is not computed to its end."""
    body = json.dumps({"inputs": ["two words " * 25] * 1000}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    words = [artifacts["embedder"], "--workers", 1, "--policy", "none", "--queue", 4000]
    with served.serving(*words, log=tmp_path / "log") as server:
        for _ in range(3):
            with socket.create_connection(server.address, 10) as link:
                link.sendall(head + body)
                served.until(lambda: server.metrics()['bertc_waiting_rows{model="embedder"}'] > 0)
        served.until(lambda: server.metrics().get('bertc_requests_total{route="/embed",status="499"}') == 3)
        metrics = server.metrics()
        assert metrics['bertc_waiting_rows{model="embedder"}'] == 0
        assert metrics['bertc_batch_rows_sum{model="embedder"}'] < 3000
        assert server.post("/embed", BODY).ok
        workers = server.workers()
        server.process.kill()  # and itself killed, it leaves no worker
        served.until(gone(workers), 5)
        assert "Traceback" not in server.log.read_text() and '"error"' not in server.log.read_text()
