"""-q, -v and --log-level: results always, notes and progress unless -q, what is logged only where it is asked for."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import tiny

from bertc.cli import cli, run
from bertc.core import Progress

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("logging") / "m.onnx")


def build(source: Path, out: Path, capsys: Capture, *before: str, after: tuple[str, ...] = ()) -> tuple[str, str]:
    words = ["build", str(source), "--fp32", "--target", "onnxruntime", "--no-fuse", "-o", str(out), *after]
    assert run([*before, *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_quiet_keeps_the_table_and_the_document(source: Path, tmp_path: Path, capsys: Capture) -> None:
    _, err = build(source, tmp_path / "loud", capsys)
    assert "done export" in err and "note no fusions" in err and "source: local file" in err
    out, err = build(source, tmp_path / "quiet", capsys, after=("-q", "--json"))
    assert not re.search(r"\b(done|note|source:|begin|end)\b", err), err
    assert "onnxruntime" in err and "quiet" in err, "the table of artifacts is a result"
    assert json.loads(out)["artifacts"][0]["path"] == str(tmp_path / "quiet")


def test_quiet_keeps_errors_and_verdicts(source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["-q", "build", str(source), "-o", str(tmp_path / "o"), "--target", "onnxruntime", "--budget", "cosin=1"]) == 2
    assert "unknown budget 'cosin'" in capsys.readouterr().err
    build(source, tmp_path / "a", capsys)
    assert run(["verify", "-q", str(tmp_path / "a")]) == 0
    err = capsys.readouterr().err
    assert "engine: verified" in err and "done" not in err


WAYS = [(("-v",), ()), ((), ("-v",)), ((), ("--log-level", "debug")), (("--log-level", "error"), ("-v",))]


@pytest.mark.parametrize("way", WAYS)
def test_verbose_names_stages_and_seconds(
    way: tuple[tuple[str, ...], tuple[str, ...]], source: Path, tmp_path: Path, capsys: Capture
) -> None:
    before, after = way
    out, err = build(source, tmp_path / "o", capsys, *before, after=after)
    assert out == ""
    assert re.search(r"DEBUG +begin export", err)
    assert re.search(r"INFO +end export: \d+\.\d{3} s", err)
    assert re.search(r"DEBUG +source: onnx, sha256 \w{64}", err)
    assert "done export" in err


def test_levels(source: Path, tmp_path: Path, capsys: Capture) -> None:
    _, err = build(source, tmp_path / "info", capsys, after=("--log-level", "info", "-q"))
    assert "end export" in err and "begin export" not in err and "done export" not in err
    _, err = build(source, tmp_path / "error", capsys, after=("--log-level", "error"))
    assert "end export" not in err and "done export" in err
    assert run(["doctor", "--log-level", "loud"]) == 2
    assert "'debug'" in capsys.readouterr().err


def test_a_stage_that_fails_says_when(source: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["build", str(source), "-v", "--fp16", "--target", "onnxruntime", "--budget", "rel=1e-30", "-o", str(tmp_path / "o")]
    assert run(words) == 1
    assert "over its budget" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="boom"), Progress().stage("one"):
        raise ValueError("boom")


def test_nothing_is_left_behind(source: Path, tmp_path: Path, capsys: Capture) -> None:
    logger = logging.getLogger("bertc")
    before = (logger.level, list(logger.handlers))
    build(source, tmp_path / "o", capsys, "-v")
    assert (logger.level, list(logger.handlers)) == before
    _, err = build(source, tmp_path / "p", capsys)
    assert "DEBUG" not in err


def test_every_command_has_them() -> None:
    def each(command: click.Command) -> list[click.Command]:
        below = [] if not isinstance(command, click.Group) else command.list_commands(click.Context(command))
        found = [command.get_command(click.Context(command), name) for name in below] if isinstance(command, click.Group) else []
        return [command, *(one for child in found if child for one in each(child))]

    for command in each(cli):
        flags = {flag for param in command.params for flag in param.opts}
        assert {"-q", "-v", "--log-level"} <= flags, command.name


def test_python_is_quiet(source: Path, tmp_path: Path) -> None:
    """A library configures no logging and prints nothing."""
    code = (
        "import logging, sys, bertc\n"
        "bertc.build(sys.argv[1], sys.argv[2], targets=['onnxruntime'], precision='fp32')\n"
        "assert not logging.getLogger('bertc').handlers and not logging.getLogger('bertc').level\n"
    )
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "o"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
