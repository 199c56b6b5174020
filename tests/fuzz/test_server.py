"""Requests that schemathesis makes of the server's own OpenAPI, right and wrong: each is answered as the document says, none by a
fault of the server, and the server answers as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason="the server's fuzz needs schemathesis: pip install schemathesis")
DEADLINE = "bertc-deadline-ms"
KINDS = ("embedder", "ranker", "classifier")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Process]:
    folder = tmp_path_factory.mktemp("fuzzed")
    paths = [served.artifact(folder, kind) for kind in KINDS]
    with served.serving(*paths, "--workers", 1, log=folder / "log") as made:
        yield made


@pytest.fixture(scope="module")
def document(server: served.Process) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


ROUTES = ["/embed", "/rerank", "/predict", "/v1/embeddings", "/v2/models/{model}/infer", "/v2/models/{model}", "/info"]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize("path", ROUTES)
def test_every_request_is_answered_as_the_document_says(document: Any, path: str, mode: Any) -> None:
    (operation,) = document[path].values()

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        answer = case.call(timeout=20)
        # A body that is right by its schema may still be refused: no candidates, a shape that no tensor of the model has.
        # 504 is what a deadline of a microsecond gets.
        left_out = [schemathesis.checks.positive_data_acceptance, schemathesis.checks.not_a_server_error]
        case.validate_response(answer, excluded_checks=left_out)
        assert answer.status_code < 500 or (answer.status_code == 504 and DEADLINE in {key.lower() for key in case.headers})
        if answer.status_code >= 400 and case.method == "POST":
            assert {"error", "error_type"} <= answer.json().keys() and len(answer.content) < 2000

    try:
        each()
    except Unsatisfiable:
        assert path == "/info" and mode.value == "negative", "only a request of nothing cannot be made wrong"


def test_afterwards_it_answers_as_before(server: served.Process) -> None:
    assert len(server.post("/embed?model=embedder", {"inputs": "two words"}).json()[0]) > 1
    assert not [line for line in server.events() if '"level": "error"' in line.lower() or "Traceback" in line]
    answered = {name: count for name, count in server.metrics().items() if name.startswith("bertc_requests_total")}
    assert sum(answered.values()) > 100
    assert not [name for name in answered if 'status="500"' in name], Path(server.log).read_text("utf-8")
