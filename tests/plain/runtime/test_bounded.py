"""A Loop that never ends is ended, and said to be one; a Loop that ends, and any other model, run as they did."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from bertc import cli
from bertc.core import BuildFailed, InputError, RunFailed
from bertc.runtime import open_session, reference_options
from bertc.runtime.bounded import LIMIT, BoundedSession, may_loop

LOOP = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 2] x) => (float[batch, 2] y)
<int64 most = {MOST}, bool yes = {1}>
{
    y = Loop (most, yes, x) <body = inner (int64 round, bool before, float[batch, 2] a) => (bool again, float[batch, 2] b)
    <float limit = {LIMIT}>
    {
        b = Cos (a)
        top = ReduceMax <keepdims = 0> (b)
        again = Less (top, limit)
    }>
}"""
FEEDS = {"x": np.zeros((1, 2), np.float32)}


def model(limit: float, most: int = 2**63 - 1) -> bytes:
    """Goes on while the largest cosine is less than `limit`: for ever at 2, one round at 0."""
    text = LOOP.replace("MOST", str(most)).replace("LIMIT", str(limit))
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def test_a_loop_without_an_end_is_ended_and_the_next_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "0.3")
    session = open_session(model(2), reference_options())
    with pytest.raises(BuildFailed, match=rf"did not end within 0.3 s, and it has a Loop, .*{LIMIT}"):
        session.run(None, FEEDS)
    before = time.perf_counter()
    with pytest.raises(BuildFailed, match="did not end"):
        session.run(None, FEEDS)
    assert time.perf_counter() - before < 0.3


def test_a_loop_that_ends_runs_as_it_did() -> None:
    for data in (model(0), model(2, 7)):
        session = open_session(data, reference_options())
        assert isinstance(session, BoundedSession) and [each.name for each in session.get_inputs()] == ["x"]
        (y,) = session.run(["y"], FEEDS)
    assert y.shape == (1, 2) and 0.6 < y.min() < 0.9, "seven cosines of 0"


def test_another_failure_keeps_its_words() -> None:
    with pytest.raises(RunFailed, match=r"(?i)cannot run it: .*rank|dimension"):
        open_session(model(0), reference_options()).run(None, {"x": np.zeros(3, np.float32)})


def test_a_model_without_a_loop_is_left_alone(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Tanh (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert not may_loop(tmp_path / "m.onnx") and not may_loop(tmp_path / "none.onnx")
    assert not isinstance(open_session(tmp_path / "m.onnx", reference_options()), BoundedSession)
    (tmp_path / "loop.onnx").write_bytes(model(0))
    assert isinstance(open_session(tmp_path / "loop.onnx", reference_options()), BoundedSession)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_limit_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, given)
    with pytest.raises(InputError, match=LIMIT):
        open_session(model(0), reference_options())


@pytest.mark.parametrize("command", [["fuse"], ["build", "--target", "onnxruntime", "--fp32"]])
def test_no_command_hangs(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LIMIT, "0.3")
    (tmp_path / "m.onnx").write_bytes(model(2))
    code = cli.run([command[0], str(tmp_path / "m.onnx"), *command[1:], "-o", str(tmp_path / "out.onnx")])
    said = capsys.readouterr().err
    assert code in (0, 1, 2, 3) and "did not end within 0.3 s" in said and "Traceback" not in said, (code, said)
