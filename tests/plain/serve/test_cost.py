"""Measured times: what lies between them, and the file that they are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertc import cli
from bertc.artifact import Artifact, open_artifact
from bertc.core import ArtifactError
from bertc.serve import cost
from bertc.serve.cost import CostModel

SIZES, LENGTHS = np.array([1, 3, 8]), np.array([8, 20, 64])
TABLE = np.array([[1.0, 2.0, 5.0], [2.0, 5.0, 11.0], [6.0, 17.0, 40.0]])
MODEL = CostModel(SIZES, LENGTHS, TABLE)


def test_the_measured_points_are_exact() -> None:
    for i, length in enumerate(LENGTHS):
        for j, rows in enumerate(SIZES):
            assert MODEL.one([int(length)] * int(rows)) == pytest.approx(TABLE[i, j])


def test_between_and_beyond() -> None:
    assert MODEL.one([14]) == pytest.approx(1.5)
    assert MODEL.one([8] * 2) == pytest.approx(1.5)
    assert MODEL.one([1]) == MODEL.one([8]) == 1.0, "the first point is the floor"
    assert MODEL.one([128]) == pytest.approx(12.0) and MODEL.one([64] * 16) == pytest.approx(80.0), "in proportion"
    assert CostModel(SIZES, LENGTHS, TABLE, per_row=0.5).one([8] * 3) == pytest.approx(3.5)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 50), st.integers(0, 10))
def test_more_takes_no_less(length: int, rows: int, longer: int, more: int) -> None:
    assert MODEL.one([length + longer] * (rows + more)) >= MODEL.one([length] * rows) * (1 - 1e-12)


def test_packed_costs_its_tokens() -> None:
    packed = CostModel(np.array([10, 100]), np.array([1]), np.array([[1.0, 4.0]]), packed=True)
    assert packed.one([50, 5]) == packed.one([55]) == pytest.approx(2.5)
    assert packed.one([200]) == pytest.approx(8.0)


def test_one_point_alone() -> None:
    assert CostModel(np.array([1]), np.array([8]), np.array([[2.0]])).one([16, 16]) == pytest.approx(8.0)


# The file


@pytest.fixture
def found(artifacts: dict[str, Path], tmp_path: Path) -> Artifact:
    (tmp_path / "a").symlink_to(artifacts["embedder"])
    return open_artifact(tmp_path / "a")


def written(found: Artifact) -> tuple[Path, dict[str, Any]]:
    path = cost.write_cost(found, CostModel(SIZES, LENGTHS, TABLE, False, 0.25, 2, 3))
    return path, json.loads(path.read_text())


def test_what_is_written_is_read(found: Artifact) -> None:
    assert cost.read_cost(found)[0] is None
    written(found)
    read, why = cost.read_cost(found)
    assert read is not None and why == ""
    assert (read.table.tolist(), read.per_row, read.workers, read.threads) == (TABLE.tolist(), 0.25, 2, 3)


@pytest.mark.parametrize(
    ("field", "says"), [("manifest", "another build"), ("machine", "another machine"), ("format", "another")]
)
def test_times_of_something_else_are_measured_again(found: Artifact, field: str, says: str) -> None:
    path, plain = written(found)
    path.write_text(json.dumps(plain | {field: 99 if field == "format" else "other"}))
    read, why = cost.read_cost(found)
    assert read is None and says in why


WRONG: list[tuple[str, Any]] = [
    ("format", "1"), ("manifest", 1), ("machine", None), ("workers", 0), ("workers", -1), ("threads", 0), ("threads", 1.5),
    ("packed", "no"), ("packed", True), ("batches", []), ("batches", [3, 1, 8]), ("batches", [0, 1]), ("batches", [1, 2, 2**70]),
    ("lengths", [8, 8, 64]), ("lengths", [-8, 20, 64]), ("lengths", "8"), ("seconds", []), ("seconds", [[1.0] * 3] * 2),
    ("seconds", [[1.0] * 2] * 3), ("seconds", [[1.0, 2.0, 0.0]] * 3), ("seconds", [[1.0, 2.0, -1.0]] * 3), ("per_row", -1),
    ("seconds", [[1.0, 2.0, "3"]] * 3), ("per_row", "x"), ("more", 1), ("seconds", [[1.0, 2.0, 1e308]] * 3), ("per_row", 1e308),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_damaged_file_is_named_with_what_to_do(found: Artifact, field: str, value: Any) -> None:
    path, plain = written(found)
    path.write_text(json.dumps(plain | {field: value}))
    with pytest.raises(ArtifactError, match="delete it") as error:
        cost.read_cost(found)
    assert str(path) in str(error.value) and (field in str(error.value) or "packed" in str(error.value))
    path.unlink()
    assert cost.read_cost(found)[0] is None, "the advice helps"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"per_row": NaN}', b'{"format": 1e999}'])
def test_what_is_no_json(found: Artifact, text: bytes) -> None:
    path, _ = written(found)
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match="delete it"):
        cost.read_cost(found)


def test_the_file_lies_beside_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cost.cost_path(Path("out/m/")) == tmp_path / "out" / "m.cost.json"


def test_bench_measures_what_the_server_goes_by(found: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies there is of another build: it is replaced, and the artifact itself is as it was."""
    cost.cost_path(found.path).write_text('{"format": 1}')
    words = ["bench", str(found.path), "--serving", "--rounds", "1", "--shapes", "1x8", "--threads", "1"]
    assert cli.run(words) == 0
    made, why = cost.read_cost(open_artifact(found.path))
    assert made is not None and why == "" and made.threads == 1
    assert made.one([64] * 32) > made.one([8]), "measured"
    assert cost.cost_path(found.path).name in capsys.readouterr().err
