"""An engine that this machine cannot run: its kernels and their work by layer, no time, and exit 3 where one was required."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

import bertc
from bertc.artifact.manifest import open_artifact
from bertc.bench import interleaved as bench
from bertc.cli import _main as cli

PROFILES = ["batch=1:2:4,length=1:16:16", "batch=1:1:4,length=17:32:32"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tiny.encoder(folder / "m.onnx")
    bertc.build(folder / "m.onnx", folder / "out", targets=["tensorrt-rtx:sm89=fp16"], profiles=PROFILES)
    return folder / "out"


def test_what_an_engine_has_to_do_is_told_without_a_time(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = open_artifact(engine)
    if not bench.why_not_runnable(found):
        pytest.skip("this machine runs the engine")
    assert cli.run(["bench", str(engine), "--json", "--against", "m.onnx"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["executed"] is False and "NOT RUN" in err and "not used: --against" in err
    assert [(each["profile"], each["shape"]["length"]) for each in document["shapes"]] == [(0, 16), (0, 16), (1, 32)]
    for each in document["shapes"]:
        total = each["layers"][-1]
        batch, length = each["shape"]["batch"], each["shape"]["length"]
        assert total["flops"] == 2 * (4 * batch * length * 16 * 16 + 2 * batch * length * length * 16)
        assert total["kernels"] == found.manifest["engine"]["kernels"]["count"]
        # Four half weights and the output at least; everything in and out of every node at most.
        assert 4 * 2 * 16 * 16 + 4 * batch * length * 16 < total["moved"] < 10**6
        assert each["unknown"] == 0
    assert cli.run(["bench", str(engine), "--require-engine"]) == 3
    assert cli.run(["bench", str(engine), "--shapes", "8x16"]) == 2
    assert "takes no 8x16" in capsys.readouterr().err


def test_a_baseline_that_cannot_run_here_is_skipped_with_its_reason(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not bench.why_not_runnable(open_artifact(engine)):
        pytest.skip("this machine runs the engine")
    cpu = engine.parent / "cpu"
    bertc.build(engine.parent / "m.onnx", cpu, targets=["onnxruntime=fp32"], profiles=PROFILES)
    assert cli.run(["bench", str(cpu), "--against", str(engine), "--shapes", "1x4", "--rounds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["skipped"]) == [str(engine)] and "cannot run here" in document["skipped"][str(engine)]
    assert list(document["contenders"]) == ["cpu"]
