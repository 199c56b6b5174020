"""What the server itself does for a row: counted on real requests, kept with the times, and nobody's request in /metrics."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bertc import core
from bertc.artifact import open_artifact
from bertc.core import Progress
from bertc.serve import Server, cost
from bertc.serve.config import ModelConfig, ServingConfig
from bertc.serve.http import measured, own_work

KINDS = ("embedder", "ranker", "tokens")


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def config(artifacts: dict[str, Path], tmp_path: Path) -> ServingConfig:
    models = {}
    for kind in KINDS:
        (tmp_path / kind).symlink_to(artifacts[kind])
        models[kind] = ModelConfig(str(tmp_path / kind))
    return ServingConfig(workers=1, threads=len(core.allowed_cores()), models=models)


def started(config: ServingConfig, then: Any) -> Any:
    """What `then` gives of a started server."""

    async def run() -> Any:
        log = Notes()
        server = Server(config, log)
        try:
            await server.start()
            await own_work.measure_own_work(server)
            return then(server, log)
        finally:
            await server.close()

    return asyncio.run(run())


def test_every_kind_of_model_is_asked_by_its_own_route(config: ServingConfig, tmp_path: Path) -> None:
    def look(server: Server, log: Notes) -> tuple[dict[str, Any], str, list[str]]:
        text = server.metrics.text(server.scheduler, server.pool.alive, server.pool.ledger)
        text = text if isinstance(text, str) else text.decode()
        return {name: server.scheduler.lanes[name].cost.per_row for name in KINDS}, text, log.notes

    per_row, metrics, notes = started(config, look)
    assert all(0 < seconds < 0.1 for seconds in per_row.values()), per_row
    counts = [line for line in metrics.splitlines() if line.startswith("bertc_requests_total{")]
    assert not any(float(line.rsplit(" ", 1)[1]) for line in counts), "nobody has asked anything yet"
    assert not any("own work" in note for note in notes)
    for name in KINDS:
        read, why = cost.read_cost(open_artifact(tmp_path / name))
        assert read is not None and read.per_row == pytest.approx(per_row[name]) and why == ""


def test_what_is_known_is_not_measured_again(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = msgspec.structs.replace(config, models={"embedder": config.models["embedder"]})
    first = asyncio.run(measured(one, Progress()))
    monkeypatch.setattr(own_work, "Server", None)
    again = asyncio.run(measured(one, Progress()))
    assert first.per_row == again.per_row and first.table.tolist() == again.table.tolist()


def test_a_refused_request_is_told_and_left_out(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = msgspec.structs.replace(config, models={"embedder": config.models["embedder"]})
    monkeypatch.setattr(own_work, "_request", lambda server, model: (b"{", "/embed"))
    found, notes = started(one, lambda server, log: (server.scheduler.lanes["embedder"].cost, log.notes))
    assert found.per_row is None and any("left out" in note and "400" in note for note in notes)
    assert found.one([8]) == dataclasses.replace(found, per_row=0.0).one([8])


def test_a_free_core_takes_it_all(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = msgspec.structs.replace(config, models={"embedder": config.models["embedder"]})
    monkeypatch.setattr(own_work, "allowed_cores", lambda: list(range(config.threads + 1)))
    assert started(one, lambda server, log: server.scheduler.lanes["embedder"].cost.per_row) == 0.0
